//! What comes out is what the general reader says, however the file was written.

use arrow::array::{ArrayRef, AsArray, ListArray, PrimitiveArray, RecordBatch};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, Field, Float32Type, Int32Type, Int64Type, Schema, UInt16Type, UInt32Type,
};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::file::properties::{WriterProperties, WriterVersion};
use proptest::prelude::*;

use super::*;

/// How a column is written.
#[derive(Debug, Clone, Copy)]
struct Writing {
    list_nullable: bool,
    item_nullable: bool,
    /// By dictionary, when none is named.
    encoding: Option<Encoding>,
    version: WriterVersion,
    compression: Compression,
    page_rows: usize,
    page_bytes: usize,
}

fn writings() -> impl Strategy<Value = Writing> {
    let encodings = prop_oneof![
        Just(None),
        Just(Some(Encoding::PLAIN)),
        Just(Some(Encoding::DELTA_BINARY_PACKED)),
    ];
    let versions = prop_oneof![
        Just(WriterVersion::PARQUET_1_0),
        Just(WriterVersion::PARQUET_2_0)
    ];
    let compressions = prop_oneof![Just(Compression::UNCOMPRESSED), Just(Compression::SNAPPY)];
    let nullable = any::<(bool, bool)>();
    let pages = (1_usize..9, 8_usize..400);
    (nullable, encodings, versions, compressions, pages).prop_map(
        |((list_nullable, item_nullable), encoding, version, compression, pages)| Writing {
            list_nullable,
            item_nullable,
            encoding,
            version,
            compression,
            page_rows: pages.0,
            page_bytes: pages.1,
        },
    )
}

fn written<T: ArrowPrimitiveType>(
    rows: &[Vec<T::Native>],
    writing: Writing,
    validity: Option<NullBuffer>,
) -> Bytes {
    let item = Arc::new(Field::new("element", T::DATA_TYPE, writing.item_nullable));
    let items = rows.iter().flatten().copied();
    let items: ArrayRef = Arc::new(PrimitiveArray::<T>::from_iter_values(items));
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(Vec::len));
    let list = ListArray::new(item.clone(), offsets, items, validity);
    let field = Field::new("numbers", DataType::List(item), writing.list_nullable);
    let schema = Arc::new(Schema::new(vec![field]));
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(list)]).unwrap();
    let mut properties = WriterProperties::builder()
        .set_writer_version(writing.version)
        .set_compression(writing.compression)
        .set_dictionary_enabled(writing.encoding.is_none())
        .set_dictionary_page_size_limit(writing.page_bytes * 4)
        .set_data_page_row_count_limit(writing.page_rows)
        .set_data_page_size_limit(writing.page_bytes)
        .set_write_batch_size(4);
    match writing.encoding {
        // There are no differences of floats.
        Some(Encoding::DELTA_BINARY_PACKED) if T::DATA_TYPE == DataType::Float32 => (),
        Some(encoding) => properties = properties.set_encoding(encoding),
        None => (),
    }
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes.into()
}

/// The rows of the first row group, by the reader of this module.
fn read<O: Copy>(bytes: &Bytes, choice: Choice<O>) -> Option<Result<Vec<Vec<O>>, String>> {
    let footer = ArrowReaderMetadata::load(bytes, ArrowReaderOptions::default()).unwrap();
    let length = bytes.len() as u64;
    let group = Group {
        chunks: Arc::new(Chunks::new(length, vec![(0..length, bytes.clone())])),
        footer: &footer,
        index: 0,
        rows: footer.metadata().row_group(0).num_rows() as usize,
    };
    let mut column = ListColumn::open(&group, "numbers", choice)?;
    let mut found = Vec::new();
    loop {
        let whole = match column.fill() {
            Ok(0) => return Some(Ok(found)),
            Ok(whole) => whole,
            Err(problem) => return Some(Err(problem)),
        };
        // Not all of them, so that rows wait for the next page.
        let taken = whole.div_ceil(2);
        let (starts, end) = column.rows();
        for row in 0..taken {
            let stop = starts.get(row + 1).copied().unwrap_or(end);
            found.push(column.items()[starts[row]..stop].to_vec());
        }
        column.consume(taken);
    }
}

fn general<T: ArrowPrimitiveType>(bytes: &Bytes) -> Vec<Vec<T::Native>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).unwrap();
    let mut rows = Vec::new();
    for batch in reader.build().unwrap() {
        let list = batch.unwrap();
        for row in list.column(0).as_list::<i32>().iter().flatten() {
            rows.push(row.as_primitive::<T>().values().to_vec());
        }
    }
    rows
}

fn same<T: ArrowPrimitiveType, O: Copy + PartialEq + std::fmt::Debug>(
    rows: &[Vec<T::Native>],
    writing: Writing,
    choice: Choice<O>,
    convert: fn(T::Native) -> O,
) -> Result<(), TestCaseError> {
    let bytes = written::<T>(rows, writing, None);
    let wanted: Vec<Vec<O>> = general::<T>(&bytes)
        .iter()
        .map(|row| row.iter().map(|&item| convert(item)).collect())
        .collect();
    prop_assert_eq!(wanted.len(), rows.len());
    let found = read(&bytes, choice).expect("this reader is for it");
    prop_assert_eq!(found, Ok(wanted));
    Ok(())
}

proptest! {
    #[test]
    fn columns_come_back(
        rows in prop::collection::vec(prop::collection::vec(prop_oneof![3 => 0_i64..20, 1 => any::<i64>()], 0..90), 1..40),
        writing in writings(),
    ) {
        let map = |cut: fn(i64) -> i64| -> Vec<Vec<i64>> {
            rows.iter().map(|row| row.iter().map(|&v| cut(v)).collect()).collect()
        };
        let u16s: Vec<Vec<u16>> = rows.iter().map(|row| row.iter().map(|&v| v as u16).collect()).collect();
        let u32s: Vec<Vec<u32>> = rows.iter().map(|row| row.iter().map(|&v| v as u32).collect()).collect();
        let i32s: Vec<Vec<i32>> = rows.iter().map(|row| row.iter().map(|&v| v as i32).collect()).collect();
        let f32s: Vec<Vec<f32>> = rows.iter().map(|row| row.iter().map(|&v| v as f32).collect()).collect();
        same::<UInt16Type, u32>(&u16s, writing, unsigned, u32::from)?;
        same::<UInt32Type, u32>(&u32s, writing, unsigned, |v| v)?;
        same::<Int32Type, i64>(&i32s, writing, signed, i64::from)?;
        same::<Int64Type, i64>(&map(|v| v), writing, signed, |v| v)?;
        same::<Int64Type, i64>(&map(|v| v % 1000), writing, signed, |v| v)?;
        same::<UInt16Type, f32>(&u16s, writing, numbers, f32::from)?;
        same::<UInt32Type, f32>(&u32s, writing, numbers, |v| v as f32)?;
        same::<Int32Type, f32>(&i32s, writing, numbers, |v| v as f32)?;
        same::<Int64Type, f32>(&map(|v| v), writing, numbers, |v| v as f32)?;
        same::<Float32Type, f32>(&f32s, writing, numbers, |v| v)?;
    }

    /// Every byte of the pages may be wrong: an error or rows, never a panic, whatever the rows are.
    #[test]
    fn damage_is_an_error_or_some_rows(
        rows in prop::collection::vec(prop::collection::vec(0_i64..2000, 0..60), 1..20),
        writing in writings(), places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let bytes = written::<Int64Type>(&rows, writing, None);
        let footer = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::default()).unwrap();
        let pages = footer.metadata().row_group(0).compressed_size() as usize;
        let mut damaged = bytes.to_vec();
        for (place, byte) in places {
            damaged[4 + place.index(pages)] = byte;
        }
        if let Some(Ok(found)) = read(&damaged.into(), signed) {
            prop_assert!(found.len() <= rows.len());
        }
    }
}

#[test]
fn missing_lists_are_left_to_the_general_reader() {
    let writing = Writing {
        list_nullable: true,
        item_nullable: true,
        encoding: None,
        version: WriterVersion::PARQUET_1_0,
        compression: Compression::UNCOMPRESSED,
        page_rows: 100,
        page_bytes: 1000,
    };
    let rows = [vec![1, 2], vec![], vec![3]];
    let validity = NullBuffer::from(vec![true, false, true]);
    let bytes = written::<Int64Type>(&rows, writing, Some(validity));
    let problem = read(&bytes, signed).unwrap().unwrap_err();
    assert!(problem.contains("missing entries"), "{problem}");
    let whole = written::<Int64Type>(&rows, writing, None);
    assert!(read(&whole, unsigned).is_none());
    assert!(read(&whole, signed).is_some());
    let floats = written::<Float32Type>(&[vec![0.5]], writing, None);
    assert!(read(&floats, signed).is_none());
    assert_eq!(read(&floats, numbers), Some(Ok(vec![vec![0.5]])));
}
