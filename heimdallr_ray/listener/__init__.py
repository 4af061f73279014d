"""The DICOM door and the durable store behind every door: gate, SCP, spool, receiver, completion, Ray actor."""
