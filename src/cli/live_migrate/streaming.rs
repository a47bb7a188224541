//! How images and root file system cross the network, where the ends share no store or not the same tree.

use std::sync::Arc;

use clap::ValueEnum;

use crate::migrate::transfer::images::{self, Pace};
use crate::migrate::wire::preamble::MAX_STREAMS;
use crate::migrate::wire::rootfs::RootfsWish;

/// More connections than this gain nothing, and cost memory.
const DEFAULT_STREAMS: usize = 4;

/// The ways of `--compress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compress {
    /// What is found to be faster while it goes on
    Auto,
    /// Nothing is compressed
    None,
    /// Zstandard
    Zstd,
    /// gzip
    Gzip,
}

/// The ways of `--rootfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rootfs {
    /// Shared where both ends see the same tree, else diff where the destination has another one there, else full
    Auto,
    /// Both ends must see the same tree
    Shared,
    /// Copy the tree and config.json, whatever the destination has there
    Full,
    /// Copy what differs from the tree that the destination has there
    Diff,
    /// Copy nothing and ask for nothing: the destination has what the container needs
    None,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Source, where the ends share no directory or not the same tree")]
#[group(id = "streaming-flags", multiple = true, requires = "destination")]
pub struct StreamingArgs {
    /// How many connections carry the images [default: as many as processors, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_STREAMS)))]
    streams: Option<u32>,
    /// How the destination gets the root file system
    #[arg(long, value_name = "WAY", value_enum, default_value = "auto")]
    rootfs: Rootfs,
    /// How images and root file system are compressed on their way
    #[arg(long, value_name = "WAY", value_enum, default_value = "auto")]
    compress: Compress,
    /// How much images and root file system may take of the network each second, such as 100MB/s or 1GiB/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    bandwidth: Option<u64>,
}

impl StreamingArgs {
    pub fn streams(&self) -> u32 {
        self.streams.unwrap_or_else(|| {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            processors.min(DEFAULT_STREAMS) as u32
        })
    }

    pub fn rootfs(&self) -> RootfsWish {
        match self.rootfs {
            Rootfs::Auto => RootfsWish::Auto,
            Rootfs::Shared => RootfsWish::Shared,
            Rootfs::Full => RootfsWish::Full,
            Rootfs::Diff => RootfsWish::Diff,
            Rootfs::None => RootfsWish::None,
        }
    }

    pub fn settings(&self) -> images::Settings {
        images::Settings {
            compression: match self.compress {
                Compress::Auto => images::Compression::Auto,
                Compress::None => images::Compression::None,
                Compress::Zstd => images::Compression::Zstd,
                Compress::Gzip => images::Compression::Gzip,
            },
            pace: self.bandwidth.map(|rate| Arc::new(Pace::new(rate))),
        }
    }
}

/// "100MB/s", "1GiB/s", "12.5M", or a number of bytes; the unit is of bytes, with or without "/s".
fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a rate such as 100MB/s, 1GiB/s or 500KB/s");
    let rate = text.strip_suffix("/s").unwrap_or(text).trim();
    let digits = rate
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rate.len());
    let (number, unit) = rate.split_at(digits);
    let scale = match unit {
        "" | "B" => 1.0,
        "K" | "kB" | "KB" => 1e3,
        "M" | "MB" => 1e6,
        "G" | "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * scale;
    // A float that is no number or too large for a u64 is no rate; less than a byte a second never ends.
    match (1.0..1e18).contains(&bytes) {
        true => Ok(bytes as u64),
        false => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!(parse_rate("100MB/s"), Ok(100_000_000));
        assert_eq!(parse_rate("1GiB/s"), Ok(1 << 30));
        assert_eq!(parse_rate("12.5M"), Ok(12_500_000));
        assert_eq!(parse_rate("4096"), Ok(4096));
        for bad in [
            "", "MB/s", "0", "-1", "1e400", "100Mbit", "1..2M", "0.1", "9e99",
        ] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }
}
