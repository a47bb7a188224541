//! Defects of a stream that a tree is received by.

/// A rule of the format that a stream violates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// The first bytes are wrong.
    #[error("its first bytes are not those of this version of rcm")]
    Magic,
    /// The stream ends early.
    #[error("it ends too early")]
    Truncated,
    /// The digest at the end does not match the frames before it.
    #[error("its digest is wrong")]
    Digest,
    /// A frame is longer than any valid one.
    #[error("a frame is longer than allowed")]
    FrameLength,
    /// A frame of an unknown kind, or in the wrong place.
    #[error("a frame of kind {kind} is not allowed there")]
    Frame {
        /// Its kind.
        kind: u8,
    },
    /// A field is cut, too long, or followed by other data.
    #[error("a field is damaged")]
    Field,
    /// A name that is empty, too long, `.`, `..`, or has a slash or NUL in it.
    #[error("a name is not one that a file can have")]
    Name,
    /// A path does not come after its predecessor, or appears twice.
    #[error("the paths are not in order")]
    Order,
    /// The parent of an entry is no directory.
    #[error("an entry lies in something that is not a directory")]
    Parent,
    /// Too many nested directories.
    #[error("directories are nested too deeply")]
    Depth,
    /// Content outside of its file.
    #[error("content lies outside its file")]
    Content,
}
