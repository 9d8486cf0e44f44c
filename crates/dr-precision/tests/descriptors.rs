//! Parsing, printing and serde of the descriptors.

use dr_precision::*;
use proptest::prelude::*;

#[test]
fn widths_are_2_to_8() {
    for bits in 0..=300 {
        assert_eq!(BitWidth::try_from(bits).is_ok(), (2..=8).contains(&bits));
        let text = bits.to_string();
        assert_eq!(text.parse::<BitWidth>().is_ok(), (2..=8).contains(&bits));
    }
    for text in ["", "+4", "04", " 4", "4.0", "four", "٤"] {
        assert_eq!(text.parse::<BitWidth>(), Err(PrecisionError::BitWidth(text.into())));
    }
}

#[test]
fn precisions_parse_and_print() {
    for w in BitWidth::ALL {
        for a in BitWidth::ALL {
            let precision = Precision::new(w, a);
            assert_eq!(precision.to_string().parse(), Ok(precision));
            let json = serde_json::to_string(&precision).unwrap();
            assert_eq!(serde_json::from_str::<Precision>(&json).unwrap(), precision);
        }
        assert_eq!(w.to_string().parse(), Ok(Precision::uniform(w)));
    }
    for text in ["", "w", "w9a4", "w4", "a4", "w4a", "wa4", "w4a4a4", "W4A4", "9", "1", "w4 a4"] {
        let error = text.parse::<Precision>().unwrap_err().to_string();
        assert!(error.contains(&format!("precision `{text}`")), "{error}");
    }
}

#[test]
fn sets_are_sorted_and_have_no_repetition() {
    let set: PrecisionSet = "2, w8a8,4,w6a6".parse().unwrap();
    assert_eq!(set, PrecisionSet::default());
    assert_eq!(set.to_string(), "w8a8,w6a6,w4a4,w2a2");
    assert_eq!((set.len(), set.stored(), set.lowest().to_string()), (4, BitWidth::B8, "w2a2".into()));
    assert_eq!(set.position(Precision::uniform(BitWidth::B4)), Some(2));
    assert_eq!("".parse::<PrecisionSet>(), Err(PrecisionError::EmptySet));
    assert_eq!(
        "4,4".parse::<PrecisionSet>().unwrap_err().to_string(),
        "precision set `4,4`: `w4a4` is listed twice; expected every precision once"
    );
    assert!("8,w4a4,4".parse::<PrecisionSet>().is_err());
    assert!("8,,4".parse::<PrecisionSet>().is_err());
    let mixed: PrecisionSet = "w4a8,w8a4".parse().unwrap();
    assert_eq!((mixed.stored(), mixed.widest_activations()), (BitWidth::B8, BitWidth::B8));
    assert!(serde_json::from_str::<PrecisionSet>("[]").is_err());
    assert!(serde_json::from_str::<PrecisionSet>(r#"["w4a4","w4a4"]"#).is_err());
}

#[test]
fn granularities_parse_and_print() {
    for text in ["tensor", "channel", "group:1", "group:64"] {
        assert_eq!(text.parse::<Granularity>().unwrap().to_string(), text);
    }
    for text in ["", "group", "group:", "group:0", "group:-1", "Tensor"] {
        assert_eq!(text.parse::<Granularity>(), Err(PrecisionError::Granularity(text.into())));
    }
}

#[test]
fn a_spec_switches_downwards_only() {
    let spec = QuantSpec::weights(BitWidth::B6);
    let switched = spec.switched(BitWidth::B3).unwrap();
    assert_eq!((switched.bits, switched.stored), (BitWidth::B3, BitWidth::B6));
    assert_eq!(spec.switched(BitWidth::B8), Err(PrecisionError::AboveStored { active: 8, stored: 6 }));
}

#[test]
fn a_plan_keeps_its_order() {
    let json = r#"{"b":"w4a8","a":"w2a2"}"#;
    let plan: PrecisionPlan = serde_json::from_str(json).unwrap();
    assert_eq!(plan.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(plan.get("a"), Some(Precision::uniform(BitWidth::B2)));
    assert_eq!(plan.get("c"), None);
    assert_eq!(serde_json::to_string(&plan).unwrap(), json);
    let error = serde_json::from_str::<PrecisionPlan>(&json.replace("\"b\"", "\"a\"")).unwrap_err();
    assert!(error.to_string().contains("layer `a` is listed twice"), "{error}");
    for wrong in ["[]", "{\"a\":4}", "{\"a\":\"w9a4\"}", "\"w4a4\""] {
        assert!(serde_json::from_str::<PrecisionPlan>(wrong).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,12}") {
        let _ = (text.parse::<BitWidth>(), text.parse::<Precision>(), text.parse::<PrecisionSet>());
        let _ = text.parse::<Granularity>();
    }
}
