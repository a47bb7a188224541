//! Address of the destination.

use std::fmt;

use crate::migrate::wire::protocol::DEFAULT_PORT;

/// Address of a destination: `HOST[:PORT]` or `ssh://[USER@]HOST[:PORT]`. An IPv6 address is in
/// brackets if a port follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Name or address.
    pub host: String,
    /// Way to the receiver there.
    pub way: Way,
}

/// Way to a receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// At its own TCP port.
    Tcp {
        /// TCP port.
        port: u16,
    },
    /// Through ssh(1).
    Ssh {
        /// User to log in as; `None` leaves that to ssh's configuration.
        user: Option<String>,
        /// Port of sshd; `None` leaves that to ssh's configuration.
        port: Option<u16>,
    },
}

/// Error for a text that is not a destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not HOST[:PORT] or ssh://[USER@]HOST[:PORT]; an IPv6 address with a port is written [ADDRESS]:PORT"
)]
pub struct InvalidDestination {
    /// Text that was given.
    pub text: String,
}

impl std::str::FromStr for Destination {
    type Err = InvalidDestination;

    fn from_str(text: &str) -> Result<Self, InvalidDestination> {
        let invalid = || InvalidDestination {
            text: text.to_owned(),
        };
        let (is_ssh, rest) = match text.strip_prefix("ssh://") {
            Some(rest) => (true, rest.strip_suffix('/').unwrap_or(rest)),
            None => (false, text),
        };
        let (user, rest) = match rest.split_once('@') {
            Some((user, rest)) if is_ssh => (Some(user), rest),
            _ => (None, rest),
        };
        let (host, port) = split_port(rest).ok_or_else(invalid)?;
        let port = match port {
            None => None,
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => Some(port),
                _ => return Err(invalid()),
            },
        };
        // A leading dash would make it an option of ssh.
        let is_name = |name: &str| {
            !name.is_empty()
                && !name.starts_with('-')
                && !name.contains(|c: char| c.is_whitespace() || c.is_control() || "/@".contains(c))
        };
        if !is_name(host) || !user.is_none_or(is_name) {
            return Err(invalid());
        }
        Ok(Self {
            host: host.to_owned(),
            way: if is_ssh {
                Way::Ssh {
                    user: user.map(str::to_owned),
                    port,
                }
            } else {
                Way::Tcp {
                    port: port.unwrap_or(DEFAULT_PORT),
                }
            },
        })
    }
}

fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest {
            "" => Some((host, None)),
            _ => Some((host, Some(rest.strip_prefix(':')?))),
        };
    }
    Some(match text.split_once(':') {
        // More than one colon: an IPv6 address without a port.
        Some((_, rest)) if rest.contains(':') => (text, None),
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    })
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = match &self.way {
            Way::Tcp { port } => Some(*port),
            Way::Ssh { user, port } => {
                f.write_str("ssh://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                *port
            }
        };
        match port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let parse = |text: &str| {
            text.parse::<Destination>().map(|d| match d.way {
                Way::Tcp { port } => (d.host, port),
                Way::Ssh { .. } => panic!("ssh"),
            })
        };
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
            "ssh://",
            "ssh://@h",
            "ssh://u@",
            "ssh://-oProxyCommand=x",
            "ssh://h/path",
            "ssh://h:x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let shown = "[fe80::1]:99".parse::<Destination>().unwrap().to_string();
        assert_eq!(shown, "[fe80::1]:99");
        for text in [
            "ssh://node2",
            "ssh://root@node2:2222",
            "ssh://[fe80::1]:22",
            "node2:7260",
        ] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
    }
}
