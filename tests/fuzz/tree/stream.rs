//! The format, written down a second time: as an enemy would.

pub const ENTRY: u8 = 1;
pub const DELETE: u8 = 2;
pub const DATA: u8 = 3;
pub const HOLE: u8 = 4;
pub const END: u8 = 5;

/// A stream of changes that need not be a valid one.
pub struct Stream {
    pub bytes: Vec<u8>,
}

pub fn number(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

pub fn counted(bytes: &[u8]) -> Vec<u8> {
    [&number(bytes.len() as u64), bytes].concat()
}

/// The kinds as the format numbers them.
#[derive(Clone, Copy)]
pub enum Kind<'a> {
    Directory,
    File(u64),
    Symlink(&'a [u8]),
    Character(u64),
    Fifo,
    Link(&'a [u8]),
}

impl Stream {
    pub fn new() -> Self {
        let mut stream = Self {
            bytes: b"rcmtree\x01\x00".to_vec(),
        };
        stream.entry(0, 0, b"", Kind::Directory);
        stream
    }

    pub fn frame(&mut self, kind: u8, payload: &[u8]) -> &mut Self {
        self.bytes.push(kind);
        self.bytes.extend((payload.len() as u32).to_le_bytes());
        self.bytes.extend(payload);
        self
    }

    pub fn entry(&mut self, how: u8, depth: u64, name: &[u8], kind: Kind) -> &mut Self {
        let (tag, own, bare) = match kind {
            Kind::Directory => (1, vec![], false),
            Kind::File(size) => (2, number(size), false),
            Kind::Symlink(target) => (3, counted(target), false),
            Kind::Character(device) => (4, number(device), false),
            Kind::Fifo => (6, vec![], false),
            Kind::Link(to) => (8, counted(to), true),
        };
        let mut payload = vec![how, tag, 0];
        payload.extend(number(depth));
        payload.extend(counted(name));
        payload.extend(own);
        if !bare {
            // Mode 0700, the tester's own identifiers, time 1, no attributes.
            let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
            payload.extend(number(0o700));
            payload.extend(number(uid.as_raw().into()));
            payload.extend(number(gid.as_raw().into()));
            payload.extend([2, 0, 0]);
        }
        self.frame(ENTRY, &payload)
    }

    pub fn delete(&mut self, depth: u64, name: &[u8]) -> &mut Self {
        let payload = [number(depth), counted(name)].concat();
        self.frame(DELETE, &payload)
    }

    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> &mut Self {
        let payload = [&number(offset), bytes].concat();
        self.frame(DATA, &payload)
    }

    pub fn end(&mut self, size: u64) -> &mut Self {
        self.frame(END, &number(size))
    }

    pub fn finish(&self) -> Vec<u8> {
        let digest = blake3::hash(&self.bytes[9..]);
        let mut whole = Self {
            bytes: self.bytes.clone(),
        };
        whole.frame(0x7f, digest.as_bytes());
        whole.bytes
    }
}
