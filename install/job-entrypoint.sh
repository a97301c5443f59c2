#!/bin/sh
# The entry point of a job's container: mounts, runs the job, unmounts (what was written is sent before that), and ends
# with the job's own exit code. SIGTERM goes to the job, so that it can write a checkpoint.
set -u

amlmount up --timeout "${AMLMOUNT_UP_TIMEOUT:-5m}" || exit $?
"$@" &
job=$!
trap 'kill -TERM "$job" 2>/dev/null' TERM INT
wait "$job"
code=$?
# A signal ends the first wait; the job may have more to do.
while kill -0 "$job" 2>/dev/null; do
    wait "$job"
    code=$?
done
amlmount down --timeout "${AMLMOUNT_DOWN_TIMEOUT:-5m}" || code=$((code ? code : 1))
exit "$code"
