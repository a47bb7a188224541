//! The connection on which CRIU hands over the memory.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use rcm::criu::page_server::{PageSink, serve};

use crate::common::random::Random;
use crate::{Scene, cases, damage};

/// Reads all that the commands announce, as far as it arrives.
struct Reader;

impl PageSink for Reader {
    fn append(&mut self, name: &str, input: &mut dyn Read, count_bytes: u64) -> io::Result<()> {
        assert!(name.starts_with("pages-") && !name.contains('/'), "{name}");
        match io::copy(&mut input.take(count_bytes), &mut io::sink())? {
            read_bytes if read_bytes == count_bytes => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The commands of criu/page-xfer.c (CRIU 4.2), and some invalid ones.
const COMMANDS: [u32; 9] = [1, 2, 3, 4, 5, 6, 7, 0x7fff, 0x10];

fn record(random: &mut Random) -> Vec<u8> {
    let flags = random.below(8) as u32;
    let mut bytes = (COMMANDS[random.below(COMMANDS.len())] | flags << 16)
        .to_ne_bytes()
        .to_vec();
    bytes.extend([0; 4]);
    let pages = match random.below(6) {
        0 => random.next(),
        _ => random.below(3) as u64,
    };
    let image = (random.below(3) as u64) << 8 | [1, 2, 10, 16, 64, 88][random.below(6)];
    for number in [pages, random.next(), image] {
        bytes.extend(number.to_ne_bytes());
    }
    if random.below(2) == 0 {
        bytes.extend(vec![7; (pages.min(3) * 4096) as usize]);
    }
    bytes
}

#[test]
fn records_of_any_kind() {
    cases(4000, |random| {
        let scene = Scene::new();
        let mut bytes: Vec<u8> = (0..random.below(12)).flat_map(|_| record(random)).collect();
        if random.below(2) == 0 {
            damage(random, &mut bytes);
        }
        let (mut criu, ours) = UnixStream::pair().unwrap();
        let sent = thread::spawn(move || {
            // The reader may have closed the connection.
            let _ = criu.write_all(&bytes);
            let _ = criu.shutdown(std::net::Shutdown::Write);
            let mut answers = Vec::new();
            let _ = criu.read_to_end(&mut answers);
        });
        let parent = scene.images();
        let dir = scene.images().join("0");
        fs::create_dir(&dir).unwrap();
        let _ = serve(ours, &dir, Some(&parent), &mut Reader);
        sent.join().unwrap();
        scene.assert_nothing_outside();
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            assert!(name.starts_with("pagemap-"), "{name}");
        }
    });
}
