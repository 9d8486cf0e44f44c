//! [`BlockType`]: how values lie in the tensors of a GGUF file.

use half::{bf16, f16};

/// How values are stored: in blocks of some, each with a scale of its own but for floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper halves of 32-bit floats.
    BF16,
    /// 4 bits: `d * (q - 8)`, blocks of 32.
    Q4_0,
    /// 4 bits: `d * q + m`, blocks of 32.
    Q4_1,
    /// 8 bits: `d * q`, blocks of 32.
    Q8_0,
    /// 4 bits: `d * s * q - m * t` in blocks of 256, with 6-bit `s` and `t` for every 32.
    Q4K,
    /// 6 bits: `d * s * (q - 32)` in blocks of 256, with an 8-bit `s` for every 16.
    Q6K,
}

/// The names of types by their numbers, as far as files have them; the numbers of others are their names.
const NAMES: [&str; 16] = [
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K",
    "Q5_K", "Q6_K", "Q8_K",
];

/// What a type of this number is called.
pub(super) fn type_name(id: u32) -> String {
    match (BlockType::ALL.iter().find(|kind| kind.id() == id), NAMES.get(id as usize)) {
        (Some(kind), _) => kind.name().to_owned(),
        (None, Some(name)) => (*name).to_owned(),
        (None, None) => format!("number {id}"),
    }
}

impl BlockType {
    /// All that are read.
    pub const ALL: [Self; 8] =
        [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q4K, Self::Q6K];

    /// The type of a number in a file.
    #[must_use]
    pub fn of(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    /// Its number, its name, and the values and bytes of a block.
    const fn layout(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::F32 => (0, "F32", 1, 4),
            Self::F16 => (1, "F16", 1, 2),
            Self::BF16 => (30, "BF16", 1, 2),
            Self::Q4_0 => (2, "Q4_0", 32, 18),
            Self::Q4_1 => (3, "Q4_1", 32, 20),
            Self::Q8_0 => (8, "Q8_0", 32, 34),
            Self::Q4K => (12, "Q4_K", 256, 144),
            Self::Q6K => (14, "Q6_K", 256, 210),
        }
    }

    /// Its number in a file.
    #[must_use]
    pub const fn id(self) -> u32 {
        self.layout().0
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.layout().1
    }

    /// Values of a block.
    #[must_use]
    pub const fn values(self) -> usize {
        self.layout().2
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.layout().3
    }

    /// The values of whole blocks, as ggml computes them: bit by bit.
    #[must_use]
    pub fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = Vec::with_capacity(bytes.len() / self.bytes() * self.values());
        for block in bytes.chunks_exact(self.bytes()) {
            match self {
                Self::F32 => out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
                Self::F16 => out.push(half(block)),
                Self::BF16 => out.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
                Self::Q8_0 => {
                    let d = half(block);
                    out.extend(block[2..].iter().map(|&q| f32::from(q.cast_signed()) * d));
                }
                Self::Q4_0 => {
                    let d = half(block);
                    out.extend(nibbles(&block[2..]).map(|q| (f32::from(q) - 8.0) * d));
                }
                Self::Q4_1 => {
                    let (d, m) = (half(block), half(&block[2..]));
                    out.extend(nibbles(&block[4..]).map(|q| f32::from(q) * d + m));
                }
                Self::Q4K => q4_k(block, &mut out),
                Self::Q6K => q6_k(block, &mut out),
            }
        }
        out
    }
}

/// The 16-bit float that bytes begin with.
fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// The lower halves of bytes, then the upper ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

/// `d`, `m`, twelve bytes with eight pairs of 6-bit factors, and 128 bytes with two codes each.
fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (d, m, packed) = (half(block), half(&block[2..]), &block[4..16]);
    let factors = |part: usize| match part {
        0..4 => (packed[part] & 63, packed[part + 4] & 63),
        _ => (
            packed[part + 4] & 15 | packed[part - 4] >> 6 << 4,
            packed[part + 4] >> 4 | packed[part] >> 6 << 4,
        ),
    };
    for (pair, codes) in block[16..].chunks_exact(32).enumerate() {
        for (half, codes) in nibbles(codes).collect::<Vec<_>>().chunks_exact(32).enumerate() {
            let (scale, min) = factors(2 * pair + half);
            let (scale, min) = (d * f32::from(scale), m * f32::from(min));
            out.extend(codes.iter().map(|&q| scale * f32::from(q) - min));
        }
    }
}

/// 128 bytes with the lower four bits of two codes each, 64 with the upper two of four, sixteen factors, and `d`.
fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (lower, rest) = block.split_at(128);
    let (upper, rest) = rest.split_at(64);
    let (factors, d) = (&rest[..16], half(&rest[16..]));
    for part in 0..2 {
        let (lower, upper, factors) =
            (&lower[64 * part..][..64], &upper[32 * part..][..32], &factors[8 * part..]);
        for (at, low) in nibbles(lower).enumerate() {
            let high = upper[at % 32] >> (2 * (at / 32)) & 3;
            let scale = d * f32::from(factors[at / 16].cast_signed());
            out.push(scale * (f32::from(low | high << 4) - 32.0));
        }
    }
}
