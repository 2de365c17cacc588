//! HTTP/3 (RFC 9114): frames, settings, field sections.
