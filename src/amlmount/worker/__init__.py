"""The process that serves one mount of the Python engine: `python -m amlmount.worker`.

What it shares with the process that starts it stands in `channel` (the socket) and `orders` (the messages).
"""
