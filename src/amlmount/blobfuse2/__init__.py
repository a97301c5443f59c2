"""What amlmount knows of blobfuse2's configuration: one table, and everything that is read off it.

Validation, rendering, import, the docs page and the JSON Schema all ask here; nothing here does any I/O.
"""
