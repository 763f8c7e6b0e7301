//! Well-formed, odd and hostile pickles, assembled byte by byte.

use proptest::prelude::*;

use super::*;

fn text(value: &str) -> Vec<u8> {
    let mut bytes = vec![b'X'];
    bytes.extend((value.len() as u32).to_le_bytes());
    bytes.extend(value.as_bytes());
    bytes
}

fn class(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// `_rebuild_tensor_v2` of a 2x3 float tensor in storage `0`.
fn tensor() -> Vec<u8> {
    [
        class("torch._utils", "_rebuild_tensor_v2"),
        b"(".to_vec(),
        b"(".to_vec(),
        text("storage"),
        class("torch", "FloatStorage"),
        text("0"),
        text("cpu"),
        b"K\x06tQ".to_vec(),
        b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89".to_vec(),
        class("collections", "OrderedDict"),
        b")RtR".to_vec(),
    ]
    .concat()
}

fn pickle(parts: &[&[u8]]) -> Vec<u8> {
    [b"\x80\x02".as_slice(), &parts.concat(), b"."].concat()
}

fn record() -> TensorRecord {
    TensorRecord {
        storage: "0".into(),
        dtype: Dtype::F32,
        storage_len: 6,
        offset: 0,
        shape: vec![2, 3],
        strides: vec![3, 1],
    }
}

fn reason(bytes: &[u8]) -> String {
    match read(bytes) {
        Err(PickleError::Malformed(reason)) => reason,
        other => panic!("expected a malformed pickle, got {other:?}"),
    }
}

#[test]
fn a_state_dict_is_read_bare_or_nested_and_other_entries_are_listed() {
    let bare = pickle(&[b"}(", &text("w"), &tensor(), &text("epoch"), b"K\x03u"]);
    let expected = Records {
        tensors: vec![("w".to_owned(), Rc::new(record()))],
        others: vec!["epoch (an int)".to_owned()],
        settings: Vec::new(),
    };
    assert_eq!(read(&bare).unwrap(), expected);
    for key in ["model_state_dict", "state_dict"] {
        let nested = pickle(&[
            b"}",
            &text("epoch"),
            b"K\x03s",
            &text(key),
            b"}",
            &text("w"),
            &tensor(),
            b"ss",
        ]);
        assert_eq!(read(&nested).unwrap().tensors, expected.tensors, "{key}");
    }
}

#[test]
fn parameters_and_attributes_of_dictionaries_are_accepted() {
    let parameter = [
        class("torch._utils", "_rebuild_parameter"),
        b"(".to_vec(),
        tensor(),
        b"\x88)tR".to_vec(),
    ]
    .concat();
    let dict = class("collections", "OrderedDict");
    let bytes = pickle(&[
        &dict,
        b")R",
        &text("w"),
        &parameter,
        b"s}",
        &text("_metadata"),
        &dict,
        b")Rsb",
    ]);
    assert_eq!(
        read(&bytes).unwrap().tensors,
        [("w".to_owned(), Rc::new(record()))]
    );
}

#[test]
fn any_other_class_is_named_and_nothing_is_called() {
    let system = [
        class("os", "system"),
        b"(".to_vec(),
        text("touch /tmp/x"),
        b"tR".to_vec(),
    ];
    let bytes = pickle(&[&system.concat()]);
    assert_eq!(
        read(&bytes),
        Err(PickleError::Forbidden("os.system".to_owned()))
    );
    let stacked = pickle(&[&text("builtins"), &text("eval"), b"\x93"]);
    assert_eq!(
        read(&stacked),
        Err(PickleError::Forbidden("builtins.eval".to_owned()))
    );
    let inst = pickle(&[b"(ios\nsystem\n"]);
    assert!(
        reason(&inst).contains("unsupported opcode (opcode 0x69"),
        "{}",
        reason(&inst)
    );
}

#[test]
fn malformed_pickles_say_what_is_wrong() {
    let whole = pickle(&[b"}", &text("w"), &tensor(), b"s"]);
    for end in 0..whole.len() {
        assert!(
            matches!(read(&whole[..end]), Err(PickleError::Malformed(_))),
            "cut at {end}"
        );
    }
    for (bytes, expected) in [
        (pickle(&[b"K\x01"]), "it holds an int, not a dict"),
        (pickle(&[b"}"]), "its dict holds no tensors"),
        (pickle(&[b"h\x05"]), "memo entry 5 was never stored"),
        (pickle(&[b"t"]), "there is no open mark"),
        (pickle(&[b"(0"]), "the stack is empty"),
        (pickle(&[b"K\x01K\x02a"]), "cannot append to an int"),
        (pickle(&[b"}(K\x01u"]), "a key has no value"),
        (
            pickle(&[b"}K\x01", &tensor(), b"s"]),
            "an int stands where a str must",
        ),
        (
            pickle(&[
                b"}",
                &text("w"),
                &tensor(),
                b"s",
                &text("w"),
                &tensor(),
                b"s",
            ]),
            "appears twice",
        ),
        (pickle(&[b"K\x01)R"]), "an int cannot be called"),
        (pickle(&[b"\x8a\x09123456789"]), "more than 64 bits"),
    ] {
        let reason = reason(&bytes);
        assert!(
            reason.contains(expected),
            "expected `{expected}`, got `{reason}`"
        );
    }
}

#[test]
fn negative_and_excessive_sizes_are_refused() {
    let with_shape = |shape: &[u8]| {
        let call = tensor();
        let at = call
            .windows(5)
            .position(|w| w == b"K\x02K\x03\x86")
            .unwrap();
        let changed = [&call[..at], shape, &call[at + 5..]].concat();
        pickle(&[b"}", &text("w"), &changed, b"s"])
    };
    assert!(reason(&with_shape(b"J\xff\xff\xff\xffK\x03\x86")).contains("-1 stands where a size"));
    assert!(reason(&with_shape(b"K\x03\x85")).contains("not as many strides as dimensions"));
    let many = [b"(".as_slice(), &b"K\x01".repeat(17), b"t"].concat();
    assert!(reason(&with_shape(&many)).contains("17 items where 16 are the most"));
}

#[test]
fn deep_nesting_and_cycles_end_without_recursion() {
    let deep = pickle(&[b")", &b"\x85".repeat(1_000_000)]);
    assert!(reason(&deep).contains("it holds a tuple"));
    // A list that contains itself, as a value of the dictionary.
    let cycle = pickle(&[
        b"}",
        &text("a"),
        b"]q\x00h\x00as",
        &text("w"),
        &tensor(),
        b"s",
    ]);
    assert_eq!(read(&cycle).unwrap().others, ["a (a list)"]);
}

/// The reason of a refusal for size.
fn excess(bytes: &[u8]) -> String {
    match read(bytes) {
        Err(PickleError::Limit(reason)) => reason,
        other => panic!("expected a limit, got {other:?}"),
    }
}

#[test]
fn every_kind_of_growth_is_bounded() {
    let long = "n".repeat(NAME_BYTES_MAX + 1);
    let bytes = pickle(&[b"}", &text(&long), &tensor(), b"s"]);
    assert!(excess(&bytes).contains("a name is longer than 4096 bytes"));
    let over = OBJECTS_MAX + 1;
    assert!(excess(&pickle(&[&b"(".repeat(over)])).contains("too many open marks"));
    assert!(excess(&pickle(&[&b"N".repeat(over)])).contains("more than 1048576 objects"));
    let memo: Vec<u8> = (0..over as u32)
        .flat_map(|index| [&b"r"[..], &index.to_le_bytes()].concat())
        .collect();
    assert!(excess(&pickle(&[b"N", &memo])).contains("its memo has more than"));
    let counted = pickle(&[b"N", &b"\x94".repeat(over)]);
    assert!(excess(&counted).contains("its memo has more than"));
    let deep = pickle(&[b"Nq\x00", &b"h\x00".repeat(over)]);
    assert!(excess(&deep).contains("the stack is too deep"));
    // One list of a thousand pairs, copied again and again.
    let pairs = [
        b"](".to_vec(),
        b"NN\x86".repeat(1000),
        b"e\x85q\x00".to_vec(),
    ]
    .concat();
    let copies = [class("collections", "OrderedDict"), b"h\x00R0".to_vec()].concat();
    let bytes = pickle(&[&pairs, &copies.repeat(OBJECTS_MAX / 1000 + 1)]);
    assert!(excess(&bytes).contains("it copies more than 1048576 pairs"));
    let bytes = vec![b'N'; PICKLE_BYTES_MAX + 1];
    assert!(excess(&bytes).contains("it has 16777217 bytes"));
}

#[test]
fn one_tensor_under_many_names_is_bounded() {
    let entries: Vec<u8> = (0..=TENSORS_MAX)
        .flat_map(|index| [text(&format!("{index:x}")), b"h\x00".to_vec()].concat())
        .collect();
    let bytes = pickle(&[&tensor(), b"q\x000}(", &entries, b"u"]);
    assert!(excess(&bytes).contains("more than 65536 tensors"));
}

#[test]
fn huge_integers_and_lengths_are_refused_before_anything_is_made() {
    assert!(reason(&pickle(&[b"\x8a\xff", &[1; 255]])).contains("more than 64 bits"));
    // LONG4 and BINBYTES8 have lengths of four and eight bytes; no tensor needs them.
    assert!(reason(&pickle(&[b"\x8b\xff\xff\xff\x7f"])).contains("unsupported opcode"));
    assert!(reason(&pickle(&[b"\x8e", &[0xff; 8]])).contains("unsupported opcode"));
    for counted in [b'X', b'T', b'B'] {
        let bytes = [b"\x80\x02".as_slice(), &[counted], b"\xff\xff\xff\xff."].concat();
        assert!(reason(&bytes).contains("it ends in the middle"));
    }
    let bytes = [b"\x80\x02\x8d".as_slice(), &[0xff; 8]].concat();
    assert!(reason(&bytes).contains("it ends in the middle"));
    let whole = pickle(&[b"}", &text("w"), &tensor(), b"s"]);
    let at = whole.windows(4).position(|w| w == b"K\x06tQ").unwrap();
    let huge = [&whole[..at], b"\x8a\x09", &[0xff; 9], &whole[at + 2..]].concat();
    assert!(reason(&huge).contains("more than 64 bits"));
    let negative = [&whole[..at], b"\x8a\x01\xff", &whole[at + 2..]].concat();
    assert!(reason(&negative).contains("-1 stands where a size must"));
}

#[test]
fn seeds_of_the_fuzz_target_are_what_their_names_say() {
    let seed = |name: &str| {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/pickle");
        std::fs::read(format!("{dir}/{name}")).unwrap()
    };
    for (name, tensors) in [
        ("two_tensors", &["w", "n", "tied"][..]),
        ("empty_tensor", &["x"]),
        ("nested_protocol_4", &["w"]),
        ("parameter", &["p"]),
        ("ordered_dict_of_pairs", &["w"]),
    ] {
        let records = read(&seed(name)).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let names: Vec<&str> = records.tensors.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, tensors, "{name}");
    }
    let forbidden = PickleError::Forbidden("os.system".to_owned());
    assert_eq!(read(&seed("forbidden")), Err(forbidden));
}

proptest! {
    #[test]
    fn random_bytes_are_an_error_and_never_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn a_damaged_pickle_never_panics(at in 0_usize..200, byte in any::<u8>()) {
        let mut bytes = pickle(&[b"}(", &text("w"), &tensor(), &text("v"), &tensor(), b"u"]);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read(&bytes);
    }
}

/// `numpy.core.multiarray.scalar(dtype(name), bytes)` with the byte order set.
fn scalar(module: &str, name: &str, order: &str, bytes: &[u8]) -> Vec<u8> {
    [
        class(module, "scalar"),
        b"(".to_vec(),
        class("numpy", "dtype"),
        b"(".to_vec(),
        text(name),
        b"\x89\x88tR(K\x03".to_vec(),
        text(order),
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb".to_vec(),
        vec![b'C', bytes.len() as u8],
        bytes.to_vec(),
        b"tR".to_vec(),
    ]
    .concat()
}

fn dictionary(value: &[u8]) -> Result<Vec<(String, DictionaryValue)>> {
    read_dictionary(&pickle(&[b"}(", &text("gene"), value, b"u"]))
}

#[test]
fn a_dictionary_holds_numbers_of_python_and_of_numpy_and_names() {
    const OLD: &str = "numpy.core.multiarray";
    const NEW: &str = "numpy._core.multiarray";
    let float = |x: f64| [b"G".as_slice(), &x.to_be_bytes()].concat();
    for (value, expected) in [
        (b"K\x07".to_vec(), DictionaryValue::Int(7)),
        (float(0.1), DictionaryValue::Float(0.1)),
        (text("ENSG1"), DictionaryValue::Text("ENSG1".into())),
        (scalar(OLD, "i2", "<", &[2, 1]), DictionaryValue::Int(258)),
        (
            scalar(OLD, "i2", "<", &[254, 255]),
            DictionaryValue::Int(-2),
        ),
        (
            scalar(NEW, "u2", "<", &[254, 255]),
            DictionaryValue::Int(65_534),
        ),
        (scalar(NEW, "i1", "|", &[5]), DictionaryValue::Int(5)),
        (
            scalar(OLD, "f8", "<", &634.3f64.to_le_bytes()),
            DictionaryValue::Float(634.3),
        ),
        (
            scalar(OLD, "f4", "<", &0.5f32.to_le_bytes()),
            DictionaryValue::Float(0.5),
        ),
    ] {
        assert_eq!(dictionary(&value), Ok(vec![("gene".into(), expected)]));
    }
}

#[test]
fn what_a_dictionary_does_not_need_is_refused() {
    const MODULE: &str = "numpy.core.multiarray";
    for (value, expected) in [
        (scalar(MODULE, "f8", ">", &[0; 8]), "byte order `>`"),
        (
            scalar(MODULE, "f8", "<", &[0; 4]),
            "not the bytes of its type",
        ),
        (
            scalar(MODULE, "f8", "<", &[0; 40]),
            "not the bytes of its type",
        ),
        (scalar(MODULE, "O", "|", &[0; 8]), "type `O`"),
        (b"N".to_vec(), "value of `gene` is None"),
        (b"]".to_vec(), "value of `gene` is a list"),
    ] {
        let Err(PickleError::Malformed(reason)) = dictionary(&value) else {
            panic!("`{expected}` was read");
        };
        assert!(reason.contains(expected), "{reason}");
    }
    let twice = pickle(&[b"}(", &text("a"), b"K\x01", &text("a"), b"K\x02u"]);
    assert!(
        matches!(read_dictionary(&twice), Err(PickleError::Malformed(r)) if r.contains("twice"))
    );
    // Each kind of file has names of its own, and neither has others.
    for (module, name) in [("os", "system"), ("torch._utils", "_rebuild_tensor_v2")] {
        let found = dictionary(&class(module, name));
        assert_eq!(
            found,
            Err(PickleError::Forbidden(format!("{module}.{name}")))
        );
    }
    let scalar = scalar(MODULE, "f8", "<", &[0; 8]);
    let found = read(&pickle(&[b"}(", &text("w"), &scalar, b"u"]));
    let name = format!("{MODULE}.scalar");
    assert_eq!(found, Err(PickleError::Forbidden(name)));
}

#[test]
fn several_models_are_read_with_their_settings() {
    let model = |settings: &[u8]| {
        [
            b"}(".as_slice(),
            &text("config"),
            settings,
            &text("state_dict"),
            b"}",
            &text("w"),
            &tensor(),
            b"su",
        ]
        .concat()
    };
    // {"depth": 3, "on": True, "off": None, "list": [0.5]}
    let settings = [
        b"}(".as_slice(),
        &text("depth"),
        b"K\x03",
        &text("on"),
        b"\x88",
        &text("off"),
        b"N",
        &text("list"),
        b"]G\x3f\xe0\0\0\0\0\0\0au",
    ]
    .concat();
    let bytes = pickle(&[
        b"}(",
        &text("gene"),
        &model(&settings),
        &text("cell"),
        &model(b"}"),
        &text("note"),
        b"K\x01u",
    ]);
    let found = read(&bytes).unwrap();
    let names: Vec<&str> = found
        .tensors
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["gene/w", "cell/w"]);
    assert_eq!(found.others, ["note (an int)"]);
    let expected = serde_json::json!({"depth": 3, "on": true, "off": null, "list": [0.5]});
    assert_eq!(found.settings[0], ("gene/config".to_owned(), expected));
    // A list that holds itself over and over.
    let mut bomb = b"]q\x000".to_vec();
    for at in 0..40u8 {
        bomb.extend([b']', b'q', at + 1, b'(', b'h', at, b'h', at, b'e', b'0']);
    }
    bomb.extend([b'h', 40]);
    let bytes = pickle(&[b"}(", &text("gene"), &model(&bomb), b"u"]);
    assert!(
        matches!(read(&bytes), Err(PickleError::Limit(_))),
        "{:?}",
        read(&bytes).is_ok()
    );
}
