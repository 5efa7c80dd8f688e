//! Short programs on candlewick.
