"""What a dead blobfuse2 left open goes on: a process of its own serves its connection until the last file is closed.

`python -m amlmount.afterlife FOLDER FUSE_FD` is that process; `held` says who holds what.
"""
