//! Whatever shapes, numbers and slices the functions over slices are given: values of just the sizes that were promised, or a typed
//! error.

use dr_kernels::host::language::{AttentionCache, attention, rms_norm, rotate, swiglu};
use dr_kernels::host::{Job, Product, Results, StoredWeight, WeightOnly, code_len, run_together};
use dr_kernels::integer::{IntConv2dShape, padded_channels};
use dr_kernels::layout::{ScaleLayout, pack, packed_words, unpack};
use dr_kernels::{Activation, CodeQuantizer, Conv2dOptions, KernelError, WeightLayout};
use dr_precision::{BitWidth, Granularity};
use proptest::prelude::*;
use std::num::NonZeroUsize;

/// A size of any order of magnitude.
fn any_size() -> impl Strategy<Value = usize> {
    let large = [13, 31, 257, 1 << 16, 1 << 32, usize::MAX / 2, usize::MAX - 1, usize::MAX];
    prop_oneof![9 => 0usize..7, 2 => prop::sample::select(large.to_vec())]
}

/// A shape of up to five axes.
fn any_shape() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any_size(), 0..6)
}

/// Any number, or none.
fn any_float() -> impl Strategy<Value = f32> {
    let special =
        [1.0, 0.1, 0.0, -0.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, f32::MAX];
    prop::sample::select(special.to_vec())
}

fn granularity() -> impl Strategy<Value = Granularity> {
    let group = any_size().prop_filter_map("not zero", |n| NonZeroUsize::new(n).map(Granularity::Group));
    prop_oneof![1 => Just(Granularity::Tensor), 2 => Just(Granularity::Channel), 1 => group]
}

fn bit_width() -> impl Strategy<Value = BitWidth> {
    prop::sample::select(BitWidth::ALL.to_vec())
}

fn options() -> impl Strategy<Value = Conv2dOptions> {
    let sizes = || [any_size(), any_size()];
    (sizes(), sizes(), sizes()).prop_map(|(stride, padding, dilation)| Conv2dOptions {
        stride,
        padding,
        dilation,
    })
}

fn quantizer() -> impl Strategy<Value = CodeQuantizer> {
    (bit_width(), any_float(), any_float()).prop_map(|(bits, scale, zero_point)| CodeQuantizer {
        bits,
        scale,
        zero_point,
    })
}

/// The product of sizes, without overflow.
fn product(sizes: &[usize]) -> u128 {
    sizes.iter().fold(1, |product, &size| product.saturating_mul(size as u128))
}

/// So many values as are right, or some others.
fn values<T: Clone>(value: T, right: usize, other: Option<usize>) -> Vec<T> {
    vec![value; other.unwrap_or(right)]
}

/// How many values there are instead of the right number.
fn other() -> impl Strategy<Value = Option<usize>> {
    prop::option::weighted(0.1, 0usize..40)
}

/// Most elements that a test makes.
const MOST: usize = 1 << 12;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn layouts_of_scales_fit_or_are_refused(
        shape in any_shape(), granularity in granularity(), at in any_size(), code in any::<i32>(),
    ) {
        for layout in [ScaleLayout::weights(&shape, granularity), ScaleLayout::activations(&shape, granularity)] {
            let layout = match layout {
                Ok(layout) => layout,
                Err(error) => {
                    prop_assert!(matches!(error, KernelError::TooLarge { .. }), "{}", error);
                    continue;
                }
            };
            let (elements, scales) = (layout.elements(), layout.scales());
            prop_assert_eq!(elements as u128, product(&shape));
            for at in [at, 0, elements.saturating_sub(1)] {
                prop_assert!(layout.scale_of(at) < scales.max(1));
                prop_assert!(layout.run_length(at) <= layout.cols());
                prop_assert!(scales == 0 || layout.elements_of(at) <= elements);
                let _ = layout.gradient_factor(at, code);
            }
            if scales <= MOST {
                prop_assert_eq!((0..scales).map(|j| layout.elements_of(j)).sum::<usize>(), elements);
            }
        }
    }

    #[test]
    fn packed_codes_fit_or_are_refused(
        codes in prop::collection::vec(any::<i8>(), 0..80), words in prop::collection::vec(any::<u32>(), 0..20),
        elements in any_size(), bits in bit_width(),
    ) {
        let in_range = |code: &i8| (bits.signed_min()..=bits.signed_max()).contains(&i32::from(*code));
        match pack(&codes, bits) {
            Ok(packed) => prop_assert_eq!(unpack(&packed, codes.len(), bits).unwrap(), codes),
            Err(_) => prop_assert!(!codes.iter().all(in_range)),
        }
        match unpack(&words, elements, bits) {
            Ok(codes) => prop_assert!(codes.len() == elements && codes.iter().all(in_range)),
            Err(_) => prop_assert_ne!(words.len(), packed_words(elements, bits)),
        }
    }

    #[test]
    fn layouts_of_weights_and_convolutions_fit_or_are_refused(
        shape in prop_oneof![any_shape(), prop::collection::vec(any_size(), 4)], groups in any_size(), bits in bit_width(),
        granularity in granularity(), batch in any_size(), input in [any_size(), any_size()], options in options(),
        at in [any_size(), any_size()],
    ) {
        let Ok(layout) = WeightLayout::new(&shape, groups, bits, granularity) else { return Ok(()) };
        let (rows, cols) = (layout.rows(), layout.cols());
        prop_assert_eq!(layout.outputs() as u128 * cols as u128, product(&shape));
        prop_assert!(layout.longest_sum() <= layout.largest_sum());
        prop_assert_eq!(layout.elements(), rows * layout.blocks() * 32);
        prop_assert_eq!(layout.words(), layout.elements() / 32 * bits.bits() as usize);
        for row in [at[0], 0, rows.saturating_sub(1), rows] {
            prop_assert!(layout.output_of(row).is_none_or(|output| row < rows && output < layout.outputs()));
        }
        if cols <= MOST {
            let columns = layout.columns();
            prop_assert_eq!(columns.len(), layout.blocks() * 32);
            let mut found: Vec<usize> = columns.into_iter().flatten().collect();
            found.sort_unstable();
            prop_assert!(found.into_iter().eq(0..cols));
        }
        let Ok(shape) = IntConv2dShape::new(batch, input, options, layout) else { return Ok(()) };
        let [rows, columns] = shape.output();
        prop_assert_eq!(shape.positions(), rows * columns);
        prop_assert_eq!(shape.results() as u128, product(&[batch, rows, columns, layout.outputs()]));
        let codes = code_len([batch, input[0], input[1], shape.channels()]);
        prop_assert_eq!(shape.code_bytes(), codes);
        if let Some([row, column]) = shape.tapped(at, at[1]) {
            prop_assert!(row < input[0] && column < input[1]);
        }
    }

    #[test]
    fn padded_sizes_are_whole_words_or_the_largest(dims in [any_size(), any_size(), any_size(), any_size()]) {
        let expected = product(&dims[..3]).saturating_mul((dims[3] as u128).next_multiple_of(4));
        let padded = padded_channels(dims[3]);
        prop_assert!(padded == usize::MAX || (padded.is_multiple_of(4) && padded >= dims[3]));
        prop_assert_eq!(code_len(dims), usize::try_from(expected).unwrap_or(usize::MAX));
    }
}

/// What a product is made of: a small weight, and anything else.
#[derive(Clone, Debug)]
struct Parts {
    shape: Vec<usize>,
    groups: usize,
    widths: [BitWidth; 2],
    granularity: Granularity,
    code: i8,
    scale: f32,
    others: [Option<usize>; 4],
}

fn parts() -> impl Strategy<Value = Parts> {
    let groups = prop_oneof![4 => Just(1), 1 => any_size()];
    let kernel = prop_oneof![Just(1usize), 0usize..4];
    let convolution = [0usize..7, 0usize..40].prop_flat_map(move |[outputs, inputs]| {
        (Just(outputs), Just(inputs), kernel.clone(), kernel.clone())
            .prop_map(|(outputs, inputs, rows, columns)| vec![outputs, inputs, rows, columns])
    });
    let shape =
        prop_oneof![6 => convolution, 2 => [0usize..40, 0usize..80].prop_map(Vec::from), 1 => any_shape()];
    let others = [other(), other(), other(), other()];
    (shape, groups, [bit_width(), bit_width()], granularity(), -2i8..2, any_float(), others).prop_map(
        |(shape, groups, widths, granularity, code, scale, others)| Parts {
            shape,
            groups,
            widths,
            granularity,
            code,
            scale,
            others,
        },
    )
}

impl Parts {
    /// The weight, if it is one.
    fn weight(&self) -> Result<dr_kernels::host::Weight, TestCaseError> {
        let Self { shape, groups, widths: [stored, active], granularity, code, scale, others } = self;
        let elements = usize::try_from(product(shape)).unwrap_or(usize::MAX);
        let right = if elements <= MOST { elements } else { 3 };
        let codes = values(*code, right, others[0]);
        let bytes = StoredWeight::from_codes(&codes, shape, *groups, *stored, *granularity);
        let words = values(0, packed_words(right, *stored), others[1]);
        let packed = StoredWeight::from_packed(&words, shape, *groups, *stored, *granularity);
        if let Ok(packed) = &packed {
            prop_assert_eq!(words.len(), packed_words(elements, *stored));
            prop_assert_eq!(
                product(shape),
                packed.layout().outputs() as u128 * packed.layout().cols() as u128
            );
        }
        let stored = bytes.map_err(|error| TestCaseError::reject(error.to_string()))?;
        prop_assert_eq!(codes.len(), elements);
        let right = stored.layout().outputs().saturating_mul(stored.layout().scale_groups());
        let scales = values(*scale, right.min(MOST), others[2]);
        let weight = stored.at(*active, &scales).map_err(|error| TestCaseError::reject(error.to_string()))?;
        prop_assert_eq!(
            (scales.len(), weight.scales().len(), weight.codes().len()),
            (right, right, elements)
        );
        weight.settle();
        Ok(weight)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 100_000, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn products_over_slices_fit_or_are_refused(
        parts in parts(), options in options(), [input, to] in [quantizer(), quantizer()],
        dims in [any_size(), any_size(), any_size(), any_size()], channels_fit in prop::bool::weighted(0.9),
        [gains, shifts, x_len, code_len_, residuals, results, results_as_codes] in [other(), other(), other(), other(), other(), other(), other()],
        channels_last: bool, with_residual: bool, wanted in [any::<bool>(), any::<bool>()], value in any_float(),
    ) {
        let weight = parts.weight()?;
        let layout = *weight.layout();
        let outputs = layout.outputs();
        let (gain, shift) = (values(value, outputs, gains), values(value, outputs, shifts));
        let Ok(product) = Product::new(weight, options, input, &gain, &shift, Activation::Relu6) else { return Ok(()) };
        prop_assert_eq!((gain.len(), shift.len()), (outputs, outputs));
        let [batch, rows, columns, channels] = dims;
        let channels = if channels_fit { layout.inputs() * layout.groups() } else { channels };
        let dims = [batch, rows, columns, channels];
        let Ok(out_dims) = product.output(dims) else { return Ok(()) };
        prop_assert!([out_dims[0], out_dims[3]] == [batch, outputs]);
        let fits = |len: usize| len.min(MOST);
        let len = |dims: [usize; 4]| usize::try_from(self::product(&dims)).unwrap_or(usize::MAX);
        let x = values(value, fits(len(dims)), x_len);
        let mut codes = values(0, fits(code_len(dims)), code_len_);
        let quantized = product.quantize(&x, dims, channels_last, &mut codes);
        prop_assert_eq!(quantized.is_ok(), x.len() == len(dims) && codes.len() == code_len(dims));
        let residual = with_residual.then(|| values(value, fits(len(out_dims)), residuals));
        let mut out = values(0.0, fits(len(out_dims)), results);
        let mut out_codes = values(0, fits(code_len(out_dims)), results_as_codes);
        let fit = codes.len() == code_len(dims)
            && residual.as_ref().is_none_or(|residual| residual.len() == len(out_dims))
            && (!wanted[0] || out.len() == len(out_dims))
            && (!wanted[1] || out_codes.len() == code_len(out_dims));
        let results = Results {
            values: wanted[0].then_some(&mut out[..]),
            codes: wanted[1].then_some((&mut out_codes[..], to)),
        };
        let mut jobs = [Job { product: &product, codes: &codes, dims, residual: residual.as_deref(), results }];
        prop_assert_eq!(run_together(&mut jobs).is_ok(), fit);
    }

    #[test]
    fn products_of_floats_fit_or_are_refused(
        parts in parts(), rows in any_size(), [biases, inputs, results] in [other(), other(), other()], with_bias: bool,
        value in any_float(),
    ) {
        let weight = parts.weight()?;
        let layout = *weight.layout();
        let bias = with_bias.then(|| values(value, layout.outputs(), biases));
        let Ok(product) = WeightOnly::new(weight, bias.as_deref()) else { return Ok(()) };
        let x = values(value, rows.saturating_mul(layout.inputs()).min(MOST), inputs);
        let mut out = values(0.0, rows.saturating_mul(layout.outputs()).min(MOST), results);
        let fits = [(x.len(), layout.inputs()), (out.len(), layout.outputs())]
            .iter()
            .all(|(found, features)| *found as u128 == rows as u128 * *features as u128);
        let result = product.run(&x, rows, &mut out);
        prop_assert!(result.is_ok() || !fits || rows > MOST, "{:?}", result);
        prop_assert!(result.is_err() || fits);
    }

    #[test]
    fn what_is_between_products_fits_or_is_refused(
        [x_len, gains, results] in [0usize..200, 0usize..20, 0usize..200], [cosines, sines] in [0usize..20, 0usize..20],
        alike in prop::bool::weighted(0.8), sizes in [any_size(), any_size(), any_size(), any_size()], value in any_float(),
        [keys, cached] in [0usize..200, 0usize..200], in_halves: bool,
    ) {
        let [head_dim, kv_heads, heads, positions] = sizes;
        let [results, sines, cached] = if alike { [x_len, cosines, keys] } else { [results, sines, cached] };
        let (x, gain, mut out) = (vec![value; x_len], vec![value; gains], vec![0.0; results]);
        let normalized = rms_norm(&x, &gain, value, &mut out).is_ok();
        prop_assert!(!normalized || (results == x_len && x_len.is_multiple_of(gains)));
        prop_assert_eq!(swiglu(&mut out, &x).is_ok(), results == x_len);
        let turned = rotate(&mut out, &vec![value; cosines], &vec![value; sines], head_dim).is_ok();
        prop_assert!(!turned || (cosines == sines && head_dim.is_multiple_of(2) && results.is_multiple_of(head_dim)));
        let cache = if in_halves { AttentionCache::in_halves } else { AttentionCache::new };
        let mut cache = cache(kv_heads, head_dim);
        let kept = cache.extend(&vec![value; keys], &vec![value; cached]).is_ok();
        let features = kv_heads as u128 * head_dim as u128;
        prop_assert_eq!(cache.positions() as u128 * features, if kept { keys as u128 } else { 0 });
        let attended = attention(&x, &cache, heads, NonZeroUsize::new(gains), &mut out).is_ok();
        prop_assert!(!attended || (results == x_len && heads.is_multiple_of(kv_heads)));
        cache.truncate(positions);
        prop_assert!(cache.positions() <= positions);
        let _ = attention(&x, &cache, heads, NonZeroUsize::new(gains), &mut out);
    }
}
