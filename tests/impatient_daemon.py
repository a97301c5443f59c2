"""`amlmount` as a service starts it, but one that gives a store 2.5 seconds where it would give it fifteen."""

from amlmount.__main__ import main
from amlmount.daemon import draining

if __name__ == "__main__":
    draining.STALLED_AFTER_S, draining.SLICE_S = 2.5, 0.3
    main()
