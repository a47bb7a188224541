//! Messages for nf_tables (linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h). Numbers in
//! attributes are big-endian.

use std::io;
use std::net::{IpAddr, SocketAddr};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`.
const BEGIN: u16 = 0x10;
/// `NFNL_MSG_BATCH_END`.
const END: u16 = 0x11;
/// `NFT_MSG_NEWTABLE`.
const NEW_TABLE: u16 = 0;
/// `NFT_MSG_DELTABLE`.
const DELETE_TABLE: u16 = 2;
/// `NFT_MSG_NEWCHAIN`.
const NEW_CHAIN: u16 = 3;
/// `NFT_MSG_NEWRULE`.
const NEW_RULE: u16 = 6;
/// `NFT_MSG_DELRULE`.
const DELETE_RULE: u16 = 8;
/// `NFT_TABLE_F_OWNER`.
const OWNED: u32 = 2;
/// Priority before defragmentation (-400), connection tracking and the rules of other programs
/// (linux/netfilter_ipv4.h).
const PRIORITY: i32 = -450;
/// Mark of CRIU's own packets (`SOCCR_MARK` in soccr/soccr.h, CRIU 4.2).
const CRIU_MARK: u32 = 0xC114;
/// `IPPROTO_ICMPV6`.
const ICMPV6: u8 = 58;
/// The types of neighbour solicitations and advertisements (RFC 4861, 4.3 and 4.4).
const NEIGHBOUR_TYPES: [u8; 2] = [135, 136];
/// `NFT_META_MARK`.
const META_MARK: u32 = 3;
/// `NFT_META_IIF`.
const META_INPUT: u32 = 4;
/// `NFT_META_OIF`.
const META_OUTPUT: u32 = 5;
/// Index of the loopback interface in every namespace (linux/net_namespace.h, `LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
/// `NFT_META_L4PROTO`.
const META_PROTOCOL: u32 = 16;
/// `NFT_CMP_EQ`.
const EQUAL: u32 = 0;
/// `NFT_CMP_LTE`.
const AT_MOST: u32 = 3;
/// `NFT_CMP_GTE`.
const AT_LEAST: u32 = 5;
/// `NF_DROP`.
const DROP: u32 = 0;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// `NFT_REG_VERDICT`.
const VERDICT: u32 = 0;
/// `NFT_REG_1`.
const REGISTER: u32 = 1;
/// `NFT_META_NFPROTO`.
const META_FAMILY: u32 = 15;
/// `NFPROTO_IPV4`.
const FAMILY_V4: u8 = 2;
/// `NFPROTO_IPV6`.
const FAMILY_V6: u8 = 10;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK_HEADER: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
const TRANSPORT_HEADER: u32 = 2;

/// The size of a `nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// The packets that a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// ARP.
    Arp,
}

/// The direction of packets that a chain sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    Input,
    Output,
}

/// A decision about some packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    AcceptMarkedByCriu,
    AcceptNeighbourDiscovery,
    AcceptLoopback,
    /// Drops the packets of a socket of this host, as one end of TCP connections.
    DropEnd(SocketAddr),
}

impl Family {
    /// `NFPROTO_INET` and `NFPROTO_ARP`.
    const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Arp => 3,
        }
    }
}

impl Chain {
    pub(super) const BOTH: [Self; 2] = [Self::Input, Self::Output];

    const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
        }
    }

    /// `NF_INET_LOCAL_IN`, `NF_INET_LOCAL_OUT`, `NF_ARP_IN`, `NF_ARP_OUT`.
    const fn hook(self, family: Family) -> u32 {
        match (family, self) {
            (Family::Inet, Self::Input) => 1,
            (Family::Inet, Self::Output) => 3,
            (Family::Arp, Self::Input) => 0,
            (Family::Arp, Self::Output) => 1,
        }
    }
}

/// Changes that the kernel makes all at once or not at all.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
}

impl Default for Batch {
    fn default() -> Self {
        let mut batch = Self { bytes: Vec::new() };
        batch.boundary(BEGIN);
        batch
    }
}

impl Batch {
    pub(super) fn make_table(&mut self, family: Family, name: &str, owned: bool) {
        let mut attributes = text(1, name);
        if owned {
            attributes.extend(number(2, OWNED));
        }
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.message(NEW_TABLE, family.number(), flags, &attributes);
    }

    pub(super) fn remove_table(&mut self, family: Family, name: &str) {
        self.message(DELETE_TABLE, family.number(), 0, &text(1, name));
    }

    /// Makes a chain. If `drops`, it drops the packets that no rule accepts; otherwise it accepts
    /// the packets that no rule drops.
    pub(super) fn make_chain(&mut self, family: Family, table: &str, chain: Chain, drops: bool) {
        let hook = [
            number(1, chain.hook(family)),
            number(2, PRIORITY.cast_unsigned()),
        ]
        .concat();
        let attributes = [
            text(1, table),
            text(3, chain.name()),
            nested(4, &hook),
            number(5, if drops { DROP } else { ACCEPT }),
            text(7, "filter"),
        ]
        .concat();
        self.message(NEW_CHAIN, family.number(), libc::NLM_F_CREATE, &attributes);
    }

    /// Removes all rules of the chain.
    pub(super) fn clear_chain(&mut self, table: &str, chain: Chain) {
        let attributes = [text(1, table), text(2, chain.name())].concat();
        self.message(DELETE_RULE, Family::Inet.number(), 0, &attributes);
    }

    pub(super) fn add_rule(&mut self, table: &str, chain: Chain, rule: Rule) {
        let mut expressions = match rule {
            Rule::AcceptMarkedByCriu => [
                load_meta(META_MARK),
                compare(EQUAL, &CRIU_MARK.to_ne_bytes()),
            ]
            .concat(),
            Rule::AcceptNeighbourDiscovery => [
                load_meta(META_PROTOCOL),
                compare(EQUAL, &[ICMPV6]),
                load(TRANSPORT_HEADER, 0, 1),
                compare(AT_LEAST, &NEIGHBOUR_TYPES[..1]),
                compare(AT_MOST, &NEIGHBOUR_TYPES[1..]),
            ]
            .concat(),
            Rule::AcceptLoopback => {
                let interface = match chain {
                    Chain::Input => META_INPUT,
                    Chain::Output => META_OUTPUT,
                };
                [
                    load_meta(interface),
                    compare(EQUAL, &LOOPBACK.to_ne_bytes()),
                ]
                .concat()
            }
            Rule::DropEnd(end) => matches_end(chain, end),
        };
        expressions.extend(match rule {
            Rule::DropEnd(_) => decide(DROP),
            _ => decide(ACCEPT),
        });
        let attributes = [
            text(1, table),
            text(2, chain.name()),
            nested(4, &expressions),
        ]
        .concat();
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        self.message(NEW_RULE, Family::Inet.number(), flags, &attributes);
    }

    /// Encodes the batch as one netlink message.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.boundary(END);
        self.bytes
    }

    fn boundary(&mut self, kind: u16) {
        self.append(kind, libc::NLM_F_REQUEST, 0, SUBSYSTEM, &[]);
    }

    fn message(&mut self, kind: u16, family: u8, flags: i32, attributes: &[u8]) {
        let flags = flags | libc::NLM_F_REQUEST;
        self.append(SUBSYSTEM << 8 | kind, flags, family, 0, attributes);
    }

    /// Appends an `nlmsghdr`, an `nfgenmsg` and attributes. The kernel answers only errors.
    fn append(&mut self, kind: u16, flags: i32, family: u8, resource: u16, attributes: &[u8]) {
        let length_bytes = (HEADER_BYTES + 4 + attributes.len()) as u32;
        self.bytes.extend(length_bytes.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags as u16).to_ne_bytes());
        // Sequence number and port.
        self.bytes.extend([0; 8]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes);
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length_bytes = (4 + value.len()) as u16;
    let mut bytes = Vec::with_capacity(value.len() + 8);
    bytes.extend(length_bytes.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(libc::NLA_F_NESTED as u16 | kind, attributes)
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn expression(name: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    nested(
        1,
        &[text(1, name), nested(2, &attributes.concat())].concat(),
    )
}

fn load_meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(2, key), number(1, REGISTER)])
}

fn load(header: u32, offset_bytes: u32, length_bytes: u32) -> Vec<u8> {
    let attributes = [
        number(1, REGISTER),
        number(2, header),
        number(3, offset_bytes),
        number(4, length_bytes),
    ];
    expression("payload", &attributes)
}

/// Matches packets that come in for this end, or that leave from it. The offsets in the headers are
/// those of RFC 791, RFC 8200 and RFC 9293.
fn matches_end(chain: Chain, end: SocketAddr) -> Vec<u8> {
    let comes = chain == Chain::Input;
    let mut expressions = [load_meta(META_PROTOCOL), compare(EQUAL, &[TCP])].concat();
    let (family, source, destination, address) = match end.ip().to_canonical() {
        IpAddr::V4(address) => (FAMILY_V4, 12, 16, address.octets().to_vec()),
        IpAddr::V6(address) => (FAMILY_V6, 8, 24, address.octets().to_vec()),
    };
    if !end.ip().is_unspecified() {
        let offset_bytes = if comes { destination } else { source };
        expressions.extend(load_meta(META_FAMILY));
        expressions.extend(compare(EQUAL, &[family]));
        expressions.extend(load(NETWORK_HEADER, offset_bytes, address.len() as u32));
        expressions.extend(compare(EQUAL, &address));
    }
    expressions.extend(load(TRANSPORT_HEADER, if comes { 2 } else { 0 }, 2));
    expressions.extend(compare(EQUAL, &end.port().to_be_bytes()));
    expressions
}

fn compare(operation: u32, value: &[u8]) -> Vec<u8> {
    let attributes = [
        number(1, REGISTER),
        number(2, operation),
        nested(3, &attribute(1, value)),
    ];
    expression("cmp", &attributes)
}

fn decide(verdict: u32) -> Vec<u8> {
    let verdict = nested(2, &number(1, verdict));
    expression("immediate", &[number(1, VERDICT), nested(2, &verdict)])
}

/// Returns the first error in an answer, in which its number is negative (netlink(7),
/// `NLMSG_ERROR`).
pub(super) fn read_answer(mut answer: &[u8]) -> io::Result<()> {
    let u32_at = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    while let Some(length_bytes) = u32_at(answer, 0) {
        let length_bytes = length_bytes as usize;
        if length_bytes < HEADER_BYTES || length_bytes > answer.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let kind = u16::from_ne_bytes([answer[4], answer[5]]);
        let code = u32_at(answer, HEADER_BYTES).unwrap_or(0) as i32;
        if i32::from(kind) == libc::NLMSG_ERROR && code != 0 {
            return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
        }
        let next = length_bytes.next_multiple_of(4).min(answer.len());
        answer = &answer[next..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_but_their_length_is_not() {
        assert_eq!(text(1, "ab"), [7, 0, 1, 0, b'a', b'b', 0, 0]);
        assert_eq!(number(2, 3), [8, 0, 2, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn errors_are_found_and_damage_is_no_panic() {
        let mut answer = vec![0; 36];
        answer[..4].copy_from_slice(&36_u32.to_ne_bytes());
        answer[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        assert!(read_answer(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        let error = read_answer(&answer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        answer[0] = 200;
        assert!(read_answer(&answer).is_err());
        assert!(read_answer(&answer[..3]).is_ok());
    }
}
