//! What a disk says of itself: the file MARKER of the data directory.
