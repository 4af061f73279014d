"""Every bound that reading of received DICOM keeps, with the reason for its size."""

from __future__ import annotations

from typing import Final

MAX_OBJECT_BYTES: Final = 4 << 30
"""One object. Explicit value lengths end at 4 GiB - 2 (PS3.5 section 7.1.1), so no native object is larger."""

FIRST_READ_BYTES: Final = 64 << 10
"""First read of a header. Headers of CT and MR slices measured 1 to 20 kB; one read serves nearly all."""

MAX_HEADER_BYTES: Final = 32 << 20
"""Everything before the pixels. Enhanced CT with 2,000 frames of functional groups needs about 4 MB; private vendor
blobs (Siemens CSA, overlays, icon images) stay below 10 MB."""

MAX_ELEMENTS: Final = 200_000
"""Elements walked in one header, nested ones included: 2,000 frames with 60 elements each, and room."""

MAX_ELEMENTS_OF_ONE_LEVEL: Final = 32_768
"""Elements side by side in a data set or in one item. PS3.6 names about 5,000 in all; objects of vendors that are full
of private elements have some hundreds."""

MAX_NESTING: Final = 24
"""Sequences inside sequences. The deepest standard templates (SR content trees aside, which are never opened here)
nest 5 deep; recursion stays far below the interpreter's limit."""

MAX_VALUES: Final = 4096
"""Values of one multi-valued element that are looked at."""

MAX_ROWS: Final = 16_384
"""Rows of one image. CT and MR end at 2,048; mammography and whole-slide tiles at 8,192."""

MAX_COLUMNS: Final = 16_384
"""Columns of one image, as MAX_ROWS."""

MAX_FRAMES: Final = 20_000
"""Frames of one object: cardiac and perfusion enhanced objects reach a few thousand."""

MAX_FRAMES_PER_SERIES: Final = 20_000
"""Slices of one series, all objects together."""

MAX_PIXEL_BYTES_PER_OBJECT: Final = 2 << 30
"""Decoded pixels of one object: 2,000 frames of 512 x 512 x 16 bit are 1.05 GB."""

MAX_PIXEL_BYTES_PER_SERIES: Final = 6 << 30
"""The assembled array. 2,000 slices of 1,024 x 1,024 int16 are 4.2 GB; more does not fit beside a model in 32 GB."""

MAX_INFLATED_BYTES: Final = MAX_PIXEL_BYTES_PER_OBJECT + MAX_HEADER_BYTES
"""Deflated objects stop inflating here, whatever their own header claims."""

MAX_INFLATE_RATIO: Final = 1032
"""DEFLATE cannot expand by more than about 1032 : 1, so a larger claim is false without trying (zlib,
technical details)."""

MAX_COMPRESSION_RATIO: Final = 2_000
"""Decoded pixel bytes per compressed byte of RLE, JPEG and JPEG 2000. A constant 512 x 512 image reaches about 1,000
with JPEG 2000; a claim beyond is refused before anything is allocated."""

LARGE_PIXEL_BYTES: Final = 64 << 20
LARGE_COMPRESSION_RATIO: Final = 200
"""Objects of more decoded bytes than the first, deflated ones among them, may not claim more than so many times their
compressed bytes. Blank frames compress far better, but no object of hundreds of frames is blank throughout; a bomb of
1 MB that inflates to 1 GiB is refused by this before it is opened."""

MAX_SERIES_PARTS: Final = 64
"""Stacks that one series is split into (sizes, orientations, echoes, phases); the rest form one unusable part."""

DECODE_CPU_S: Final = 10.0
DECODE_CPU_S_PER_MIB: Final = 1.0
"""Processor time for one frame in a decoder's child process, whatever else the machine does: so much, and so much more
per MiB of its pixels. JPEG 2000 of pure noise, the slowest, was measured to take 0.15 s per MiB."""

DECODE_WALL_FACTOR: Final = 4.0
"""Time by the wall for one frame, in multiples of that: a codec that waits for ever uses no processor."""

DECODER_START_S: Final = 60.0
"""Until a new child process has loaded the codecs; half a second on an idle core, more on a crowded machine."""

DECODER_MEMORY_BYTES: Final = 8 << 30
"""Address space of a decoder's child process beyond what it has when it starts, whatever the frames are."""

DECODER_MEMORY_BASE_BYTES: Final = 256 << 20
DECODER_MEMORY_FACTOR: Final = 16
"""The same by the frames at hand: a base for tables and thread stacks, the batch itself, and so many times its largest
frame. JPEG 2000 works on 32-bit samples with a copy or two: 8 bytes for each decoded byte of an 8-bit image."""

DECODE_BATCH_FRAMES: Final = 8
DECODE_BATCH_BYTES: Final = 4 << 20
"""Frames, and decoded bytes, of one request to a child process, so that what a request costs is shared; one frame may
be larger than that."""

MAX_DECODER_PROCESSES: Final = 16
"""Child processes that decode side by side; each holds about 70 MB."""

CONVERTER_SECONDS: Final = 60
"""One object in dcm2niix's process, by the wall and by the processor; a mosaic of 64 slices takes 0.05 s."""

CONVERTER_MEMORY_BYTES: Final = 4 << 30
"""Address space of that process; it holds one object a few times over."""

CONVERTER_INPUT_BYTES: Final = 512 << 20
"""One object given to it. A mosaic takes 0.1 to 2 MB, a multi-frame object of 2,000 frames of 256 x 256 262 MB."""

CONVERTER_REPORT_BYTES: Final = 64 << 10
"""Of its report on standard output; a conversion takes ten lines."""
