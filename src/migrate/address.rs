//! Where a container goes.

use super::protocol::DEFAULT_PORT;

/// `HOST[:PORT]`, with an IPv6 address in brackets where a port follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// A text is no `HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not HOST[:PORT]; an IPv6 address with a port is written [ADDRESS]:PORT")]
pub struct InvalidDestination {
    /// The text.
    pub text: String,
}

impl std::str::FromStr for Destination {
    type Err = InvalidDestination;

    fn from_str(text: &str) -> Result<Self, InvalidDestination> {
        let invalid = || InvalidDestination {
            text: text.to_owned(),
        };
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(invalid)?;
            match rest {
                "" => (host, None),
                _ => (host, Some(rest.strip_prefix(':').ok_or_else(invalid)?)),
            }
        } else {
            match text.split_once(':') {
                // More than one colon: an IPv6 address without a port.
                Some((_, rest)) if rest.contains(':') => (text, None),
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port
                .parse()
                .ok()
                .filter(|&port| port != 0)
                .ok_or_else(invalid)?,
        };
        if host.is_empty()
            || host
                .chars()
                .any(|c| c.is_whitespace() || c == '/' || c == '@')
        {
            return Err(invalid());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let parse = |text: &str| text.parse::<Destination>().map(|d| (d.host, d.port));
        assert_eq!(parse("10.0.0.2"), Ok(("10.0.0.2".into(), 7260)));
        assert_eq!(parse("node2:99"), Ok(("node2".into(), 99)));
        assert_eq!(parse("fe80::1"), Ok(("fe80::1".into(), 7260)));
        assert_eq!(parse("[fe80::1]"), Ok(("fe80::1".into(), 7260)));
        assert_eq!(parse("[fe80::1]:99"), Ok(("fe80::1".into(), 99)));
        for bad in [
            "",
            ":99",
            "node:",
            "node:0",
            "node:65536",
            "node:x",
            "[::1",
            "[::1]99",
            "a b",
            "u@h",
            "ssh://h",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let shown = "[fe80::1]:99".parse::<Destination>().unwrap().to_string();
        assert_eq!(shown, "[fe80::1]:99");
    }
}
