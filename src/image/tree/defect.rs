//! Defects of a stream that a tree is received by.

/// What is wrong with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// The first bytes.
    #[error("it does not begin as one of this version of rcm")]
    Magic,
    /// The stream ends early.
    #[error("it ends too early")]
    Truncated,
    /// The digest at the end is not that of what came before.
    #[error("its digest is wrong")]
    Digest,
    /// A frame is longer than any valid one.
    #[error("a frame is longer than allowed")]
    FrameLength,
    /// A frame that is unknown or stands in the wrong place.
    #[error("a frame of kind {kind} has no place there")]
    Frame {
        /// Its kind.
        kind: u8,
    },
    /// A field is cut, too long, or followed by something.
    #[error("a field is damaged")]
    Field,
    /// A name that is empty, too long, `.`, `..`, or has a slash or NUL in it.
    #[error("a name is not one that a file can have")]
    Name,
    /// A path does not come after its predecessor, or comes twice.
    #[error("the paths are not in order")]
    Order,
    /// An entry lies in something that is no directory.
    #[error("an entry lies in something that is not a directory")]
    Parent,
    /// Too many directories inside one another.
    #[error("directories lie too deep")]
    Depth,
    /// Content that does not lie in its file.
    #[error("content lies outside its file")]
    Content,
}
