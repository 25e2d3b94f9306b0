//! How blocks of tables are compressed. Named here because settings and formats both name it.

/// How a block is stored. The numbers are those of the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    #[default]
    None = 0,
    /// LZ4 block format.
    Lz4 = 1,
    /// A zstd frame, written at level 1.
    Zstd = 2,
}

impl Codec {
    /// All of them.
    pub const ALL: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

    /// The one with this number in a file.
    pub fn from_u8(number: u8) -> Option<Codec> {
        Codec::ALL.into_iter().find(|codec| *codec as u8 == number)
    }

    /// The one with this name in a setting.
    pub fn from_name(name: &str) -> Option<Codec> {
        Codec::ALL.into_iter().find(|codec| codec.name() == name)
    }

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Codecs by level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// Of the levels above the last: what is written there is soon rewritten.
    pub upper: Codec,
    /// Of the last level, which holds nearly everything.
    pub last: Codec,
}

impl Default for Compression {
    fn default() -> Compression {
        Compression { upper: Codec::None, last: Codec::Lz4 }
    }
}
