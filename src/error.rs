//! Errors as the layers hand them up, and as a person reads them.

/// The error of a layer below, kept as the source of this layer's own error.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Returns the sentence of an error and of all its sources, joined with colons.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        // Transparent errors repeat their source's sentence.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot read PATH")]
        Named(#[source] std::io::Error),
        #[error(transparent)]
        Plain(std::io::Error),
    }

    #[test]
    fn sources_follow_and_transparent_errors_are_told_once() {
        let cause = || std::io::Error::other("no key");
        assert_eq!(chain(&Outer::Named(cause())), "cannot read PATH: no key");
        assert_eq!(chain(&Outer::Plain(cause())), "no key");
    }
}
