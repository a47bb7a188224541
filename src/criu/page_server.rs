//! A page server: takes the memory that CRIU dumps, instead of the image directory.
//!
//! CRIU inherits a socket and sends records of 32 bytes over it (24 bytes before CRIU 4.2). Some
//! records are followed by pages (criu/page-xfer.c, CRIU 4.2). This end writes the maps, which tell
//! the address of each page, into the image directory as CRIU itself would: they are small, and the
//! next dump of a chain asks for them. The pages go to a [`PageSink`].
//!
//! The socket is `SOCK_SEQPACKET` for a reason. CRIU vmsplices the pages, then cures the parasite
//! by writing a syscall instruction over the task's code (`compel_execute_syscall` in
//! compel/src/lib/infect.c, CRIU 4.2). If such a page is still only referenced by the socket, the
//! image gets the patched bytes: a broken vDSO, which makes the restore fail, or corrupted code. A
//! stream socket keeps such references until somebody reads. SEQPACKET copies, so [`connection`]
//! uses it.
//!
//! CRIU 4.2 and newer have the wide layout. All numbers are in the byte order of the machine.
//!
//! ```text
//! wide    command:u32 (flags in the upper half)  padding:u32  pages:u64  address:u64  image:u64
//! narrow  command:u32                            pages:u32               address:u64  image:u64
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::unistd::{SysconfVar, sysconf};
use protobuf::CodedOutputStream;

/// criu/include/magic.h, CRIU 4.2
const IMG_COMMON_MAGIC: u32 = 0x5456_4319;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;

/// Size of a read, which must be larger than any packet: the rest of a packet would be lost. CRIU's
/// own packets are not larger than a record's 32 bytes. splice(2) makes packets of at most 16 pages
/// (fs/splice.c, `splice_to_socket`), in older kernels of one page.
const PACKET_BYTES: usize = 256 << 10;
/// Buffer of CRIU's socket. CRIU and this end take turns on the processors for each full buffer.
const BUFFER_BYTES: usize = 4 << 20;

/// Bytes of a narrow record, and the additional bytes of a wide one.
const NARROW_BYTES: usize = 24;
const MORE_BYTES: usize = 8;
const ADD: u16 = 1;
const HOLE: u16 = 2;
const OPEN2: u16 = 4;
const PARENT: u16 = 5;
const ADD_F: u16 = 6;
const CLOSE: u16 = 0x1023;
const FORCE_CLOSE: u16 = 0x1024;

/// Flags of an entry in a map (criu/include/pagemap.h, CRIU 4.2).
const PE_PARENT: u32 = 1 << 0;
const PE_PRESENT: u32 = 1 << 2;

/// Kinds of memory: of one process, or shared by several.
const TYPE_PROCESS: u64 = 1;
const TYPE_SHARED: u64 = 2;

/// Receives the contents of the page files.
pub trait PageSink: Send {
    /// Appends the next `count_bytes` of `input` to the file `name`, such as `pages-1.img`.
    ///
    /// # Errors
    /// Any error makes the dump fail.
    fn append(&mut self, name: &str, input: &mut dyn Read, count_bytes: u64) -> io::Result<()>;

    /// Ends all files.
    ///
    /// # Errors
    /// As [`Self::append`].
    fn finish(&mut self) -> io::Result<()>;
}

/// CRIU and this end do not understand each other, or the pages cannot be stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageServerError {
    /// CRIU ended, or the sink failed.
    #[error("cannot take the memory from CRIU")]
    Connection {
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A map cannot be written.
    #[error("cannot write {path}")]
    Map {
        /// Path of the map.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A record that this end does not know.
    #[error(
        "CRIU sent the page server command {command:#x} for image {image:#x}, which rcm does not know"
    )]
    Unknown {
        /// The command, without flags.
        command: u16,
        /// Number and kind of the memory.
        image: u64,
    },
}

type Result<T, E = PageServerError> = std::result::Result<T, E>;

/// One image: a map, and the name of its page file.
struct Image {
    map: BufWriter<File>,
    path: PathBuf,
    pages: String,
}

/// Layout of CRIU's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Narrow,
    Wide,
}

struct Record {
    command: u16,
    flags: u32,
    pages: u64,
    address: u64,
    image: u64,
}

/// Makes a connection for [`serve`]: this end's socket, and CRIU's.
///
/// # Errors
/// As socketpair(2).
pub fn connection() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    // If the kernel refuses a larger buffer, the transfer is only slower.
    let _ = setsockopt(&theirs, sockopt::SndBufForce, &BUFFER_BYTES);
    Ok((ours.into(), theirs.into()))
}

/// Serves one dump or pre-dump into the image directory `dir`, whose parent in the chain is
/// `parent`, until CRIU says that all was sent.
///
/// # Errors
/// [`PageServerError`]. CRIU's dump fails too, because its connection ends.
pub fn serve(
    socket: UnixStream,
    dir: &Path,
    parent: Option<&Path>,
    sink: &mut dyn PageSink,
) -> Result<()> {
    // The reader reads its whole capacity at once, so it never cuts a packet.
    let mut packets = BufReader::with_capacity(PACKET_BYTES, socket);
    let served = serve_all(&mut packets, dir, parent, sink);
    // Closing is not enough: this process may have another descriptor of the socket, and CRIU would
    // wait for an answer for ever.
    let _ = packets.get_ref().shutdown(Shutdown::Both);
    served
}

fn serve_all(
    socket: &mut BufReader<UnixStream>,
    dir: &Path,
    parent: Option<&Path>,
    sink: &mut dyn PageSink,
) -> Result<()> {
    let page_bytes = sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .map_or(4096, |bytes| bytes as u64);
    let mut images = HashMap::new();
    let mut layout = None;
    loop {
        let record = Record::read(socket, &mut layout)?;
        match record.command {
            OPEN2 => {
                let has_parent = has_parent(&record, parent)?;
                let number = images.len() + 1;
                images.insert(record.image, Image::create(dir, &record, number)?);
                answer(socket, &[u8::from(has_parent)])?;
            }
            PARENT => {
                let has_parent = i32::from(has_parent(&record, parent)?);
                answer(socket, &has_parent.to_ne_bytes())?;
            }
            ADD | ADD_F | HOLE => {
                let flags = match record.command {
                    ADD => PE_PRESENT,
                    HOLE => PE_PARENT,
                    _ => record.flags,
                };
                let Some(image) = images.get_mut(&record.image) else {
                    return Err(record.unknown());
                };
                image.add(&record, flags)?;
                if flags & PE_PRESENT != 0 {
                    let count_bytes = record.pages.checked_mul(page_bytes);
                    let count_bytes = count_bytes.ok_or_else(|| record.unknown())?;
                    sink.append(&image.pages, socket, count_bytes)
                        .map_err(lost)?;
                }
            }
            CLOSE | FORCE_CLOSE => {
                for image in images.values_mut() {
                    image.map.flush().map_err(map_error(&image.path))?;
                }
                sink.finish().map_err(lost)?;
                return answer(socket, &0_i32.to_ne_bytes());
            }
            _ => return Err(record.unknown()),
        }
    }
}

fn answer(socket: &BufReader<UnixStream>, bytes: &[u8]) -> Result<()> {
    socket.get_ref().write_all(bytes).map_err(lost)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[at..at + N]);
    number
}

fn lost(source: io::Error) -> PageServerError {
    PageServerError::Connection { source }
}

fn map_error(path: &Path) -> impl FnOnce(io::Error) -> PageServerError {
    let path = path.to_path_buf();
    move |source| PageServerError::Map { path, source }
}

/// Whether the parent images have that memory. If so, CRIU leaves out the unchanged pages.
fn has_parent(record: &Record, parent: Option<&Path>) -> Result<bool> {
    let map = map_name(record)?;
    Ok(parent.is_some_and(|parent| fs::symlink_metadata(parent.join(map)).is_ok()))
}

fn map_name(record: &Record) -> Result<String> {
    let id = record.image >> 8;
    match record.image & 0xff {
        TYPE_PROCESS => Ok(format!("pagemap-{id}.img")),
        TYPE_SHARED => Ok(format!("pagemap-shmem-{id}.img")),
        _ => Err(record.unknown()),
    }
}

impl Record {
    /// Reads a record. The first one tells the layout: it opens an image or asks about one, and its
    /// address is 0. The wide layout has this address where the narrow one has the image's number.
    fn read(socket: &mut BufReader<UnixStream>, layout: &mut Option<Layout>) -> Result<Self> {
        let mut bytes = [0; NARROW_BYTES + MORE_BYTES];
        let (narrow, more) = bytes.split_at_mut(NARROW_BYTES);
        socket.read_exact(narrow).map_err(lost)?;
        let command = u32::from_ne_bytes(number(narrow, 0));
        let found = layout.unwrap_or(match u64::from_ne_bytes(number(narrow, 16)) {
            0 => Layout::Wide,
            _ => Layout::Narrow,
        });
        // A dump without any memory begins with the end. All its other numbers are 0 in both
        // layouts.
        let is_only_end = layout.is_none() && matches!(command as u16, CLOSE | FORCE_CLOSE);
        if found == Layout::Wide && !is_only_end {
            socket.read_exact(more).map_err(lost)?;
        }
        *layout = Some(found);
        let (pages, rest) = match found {
            Layout::Narrow => (u32::from_ne_bytes(number(&bytes, 4)).into(), &bytes[8..]),
            Layout::Wide => (u64::from_ne_bytes(number(&bytes, 8)), &bytes[16..]),
        };
        Ok(Self {
            command: command as u16,
            flags: command >> 16,
            pages,
            address: u64::from_ne_bytes(number(rest, 0)),
            image: u64::from_ne_bytes(number(rest, 8)),
        })
    }

    fn unknown(&self) -> PageServerError {
        PageServerError::Unknown {
            command: self.command,
            image: self.image,
        }
    }
}

impl Image {
    fn create(dir: &Path, record: &Record, number: usize) -> Result<Self> {
        let path = dir.join(map_name(record)?);
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(map_error(&path))?;
        let mut image = Self {
            map: BufWriter::new(file),
            path,
            pages: format!("pages-{number}.img"),
        };
        let mut magic = IMG_COMMON_MAGIC.to_le_bytes().to_vec();
        magic.extend(PAGEMAP_MAGIC.to_le_bytes());
        image
            .map
            .write_all(&magic)
            .map_err(map_error(&image.path))?;
        // pagemap_head (images/pagemap.proto, CRIU 4.2)
        image.write(|out| out.write_uint32(1, number as u32))?;
        Ok(image)
    }

    fn add(&mut self, record: &Record, flags: u32) -> Result<()> {
        // pagemap_entry. CRIU before 4.1 knows the number of pages only as field 2. Newer versions
        // have field 5 for larger numbers.
        self.write(|out| {
            out.write_uint64(1, record.address)?;
            out.write_uint32(2, record.pages.try_into().unwrap_or(u32::MAX))?;
            out.write_uint32(4, flags)?;
            out.write_uint64(5, record.pages)
        })
    }

    /// Appends one message after its length.
    fn write(
        &mut self,
        fill: impl FnOnce(&mut CodedOutputStream) -> protobuf::Result<()>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        let mut out = CodedOutputStream::vec(&mut bytes);
        let filled = fill(&mut out).and_then(|()| out.flush());
        drop(out);
        filled
            .map_err(io::Error::other)
            .and_then(|()| self.map.write_all(&(bytes.len() as u32).to_le_bytes()))
            .and_then(|()| self.map.write_all(&bytes))
            .map_err(map_error(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{SpliceFFlags, splice};
    use std::os::unix::fs::FileExt;

    #[derive(Default)]
    struct Taken(Vec<(String, Vec<u8>)>, bool);

    impl PageSink for Taken {
        fn append(&mut self, name: &str, input: &mut dyn Read, count: u64) -> io::Result<()> {
            let mut bytes = vec![0; count as usize];
            input.read_exact(&mut bytes)?;
            self.0.push((name.to_owned(), bytes));
            Ok(())
        }

        fn finish(&mut self) -> io::Result<()> {
            self.1 = true;
            Ok(())
        }
    }

    fn record(command: u32, pages: u64, address: u64, image: u64) -> Vec<u8> {
        record_of(Layout::Wide, command, pages, address, image)
    }

    fn record_of(layout: Layout, command: u32, pages: u64, address: u64, image: u64) -> Vec<u8> {
        let mut bytes = command.to_ne_bytes().to_vec();
        match layout {
            Layout::Narrow => bytes.extend((pages as u32).to_ne_bytes()),
            Layout::Wide => {
                bytes.extend([0; 4]);
                bytes.extend(pages.to_ne_bytes());
            }
        }
        bytes.extend(address.to_ne_bytes());
        bytes.extend(image.to_ne_bytes());
        bytes
    }

    #[test]
    fn maps_are_written_and_pages_passed_on() {
        for layout in [Layout::Narrow, Layout::Wide] {
            serve_one(layout);
        }
    }

    fn serve_one(layout: Layout) {
        let record =
            |command, pages, address, image| record_of(layout, command, pages, address, image);
        let dir = tempfile::tempdir().unwrap();
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("pagemap-7.img"), "").unwrap();
        let (ours, mut criu) = connection().unwrap();
        let (process, shared) = (7 << 8 | TYPE_PROCESS, 9 << 8 | TYPE_SHARED);
        let page = [5; 4096];
        let mut sent = record(OPEN2.into(), 0, 0, process);
        sent.extend(record(
            u32::from(ADD_F) | PE_PRESENT << 16,
            1,
            0x1000,
            process,
        ));
        sent.extend(page);
        sent.extend(record(
            u32::from(ADD_F) | PE_PARENT << 16,
            3,
            0x2000,
            process,
        ));
        sent.extend(record(PARENT.into(), 0, 0, shared));
        sent.extend(record(OPEN2.into(), 0, 0, shared));
        sent.extend(record(FORCE_CLOSE.into(), 0, 0, 0));
        criu.write_all(&sent).unwrap();
        let mut taken = Taken::default();
        serve(ours, dir.path(), Some(parent.path()), &mut taken).unwrap();
        // CRIU asks for each of them separately.
        for said in [&[1][..], &[0; 4], &[0], &[0; 4]] {
            let mut answer = [9; 32];
            let count = criu.read(&mut answer).unwrap();
            assert_eq!(&answer[..count], said);
        }
        assert_eq!(criu.read(&mut [0]).unwrap(), 0);
        assert_eq!(taken.0, [("pages-1.img".to_owned(), page.to_vec())]);
        assert!(taken.1);
        let map = fs::read(dir.path().join("pagemap-7.img")).unwrap();
        let head = [
            0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56, 2, 0, 0, 0, 8, 1,
        ];
        assert_eq!(map[..14], head);
        let entry = [9, 0, 0, 0, 8, 0x80, 0x20, 16, 1, 32, 4, 40, 1];
        assert_eq!(map[14..27], entry);
        assert_eq!(map.len(), 40);
        assert!(dir.path().join("pagemap-shmem-9.img").exists());
    }

    #[test]
    fn a_dump_without_memory_is_only_an_end() {
        for layout in [Layout::Narrow, Layout::Wide] {
            let dir = tempfile::tempdir().unwrap();
            let (ours, mut criu) = connection().unwrap();
            let sent = record_of(layout, FORCE_CLOSE.into(), 0, 0, 0);
            criu.write_all(&sent).unwrap();
            serve(ours, dir.path(), None, &mut Taken::default()).unwrap();
            let mut status = [1; 4];
            criu.read_exact(&mut status).unwrap();
            assert_eq!(status, [0; 4]);
        }
    }

    #[test]
    fn what_is_not_understood_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        for sent in [
            record(99, 0, 0, 7 << 8 | TYPE_PROCESS),
            record(OPEN2.into(), 0, 0, 7 << 8 | 77),
            // Pages of an image that was not opened.
            record(ADD.into(), 1, 0, 7 << 8 | TYPE_PROCESS),
            // The end of the connection inside a record.
            vec![0; 3],
        ] {
            let (ours, mut criu) = connection().unwrap();
            criu.write_all(&sent).unwrap();
            drop(criu);
            assert!(serve(ours, dir.path(), None, &mut Taken::default()).is_err());
        }
    }

    /// Like CRIU, changes a page after it was spliced into the socket and before anybody has read
    /// it.
    #[test]
    fn pages_are_what_they_were_when_they_were_sent() {
        let page = tempfile::tempfile().unwrap();
        page.write_all_at(&[5; 4096], 0).unwrap();
        let (from_pipe, to_pipe) = nix::unistd::pipe().unwrap();
        let (ours, criu) = connection().unwrap();
        let flags = SpliceFFlags::SPLICE_F_MOVE;
        splice(&page, Some(&mut 0), &to_pipe, None, 4096, flags).unwrap();
        splice(&from_pipe, None, &criu, None, 4096, flags).unwrap();
        page.write_all_at(&[7; 4096], 0).unwrap();
        let mut read = [0; 4096];
        let mut packets = BufReader::with_capacity(PACKET_BYTES, ours);
        packets.read_exact(&mut read).unwrap();
        assert_eq!(read, [5; 4096]);
    }
}
