//! Every row exactly once, whatever the file, the cuts and the windows.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    csv::Cells,
    quotes::QuoteScanner,
    splitter::{RowEnd, Split, Splitter},
};

/// Rows of a file by offset, as read shard by shard and window by window.
fn rows(
    file: &[u8],
    cuts: &[u64],
    window_bytes: &[usize],
    row_end: &RowEnd,
) -> Vec<(u64, Vec<u8>)> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([u64::MAX]);
    let mut rows = Vec::new();
    for (start, end) in starts.zip(ends) {
        let mut splitter = Splitter::new(row_end.clone(), start, end, 1 << 20);
        let mut rest = &file[(splitter.first_offset() as usize).min(file.len())..];
        let mut sizes = window_bytes.iter().cycle();
        loop {
            match splitter.next() {
                Split::Row {
                    offset,
                    bytes,
                    open_quote: _,
                } => rows.push((offset, bytes.to_vec())),
                Split::TooLong { offset } => panic!("the row at {offset} is not too long"),
                Split::More if rest.is_empty() => splitter.finish(),
                Split::More => {
                    // A byte order mark always arrives whole: windows are larger than it.
                    let size = (*sizes.next().unwrap()).max(3).min(rest.len());
                    splitter.push(Bytes::copy_from_slice(&rest[..size]));
                    rest = &rest[size..];
                }
                Split::End => break,
            }
        }
    }
    rows
}

/// The obvious way: the whole file at once.
fn simple_lines(file: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut rows = Vec::new();
    let mut offset = 0;
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        let mut row = line.strip_suffix(b"\n").unwrap_or(line);
        row = row.strip_suffix(b"\r").unwrap_or(row);
        if offset == 0 {
            row = row.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(row);
        }
        if !row.is_empty() {
            rows.push((offset, row.to_vec()));
        }
        offset += line.len() as u64;
    }
    rows
}

fn lines_file() -> impl Strategy<Value = Vec<u8>> {
    let piece = select(vec![
        "a", "bc", "é", "日本", "\u{feff}", "\"", ",", " ", "\r", "\n", "\r\n",
    ]);
    vec(piece, 0..60).prop_map(|pieces| pieces.concat().into_bytes())
}

fn sorted_cuts() -> impl Strategy<Value = Vec<u64>> {
    vec(1_u64..150, 0..8).prop_map(|mut cuts| {
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    })
}

/// Records of a CSV file with well-formed quotes, and whether the last line ends.
fn csv_file() -> impl Strategy<Value = Vec<u8>> {
    let plain = select(vec!["", "a", "5\" disk", "=1+1", " b", "é"]).prop_map(String::from);
    let piece = select(vec!["x", "\"\"", "\n", "\r\n", ",", "日"]);
    let quoted = vec(piece, 0..6).prop_map(|pieces| format!("\"{}\"", pieces.concat()));
    let cell = prop_oneof![plain, quoted];
    let end = select(vec!["\n", "\r\n", "\n\n", "\r\n\r\n"]);
    let record = (vec(cell, 1..4), end);
    (vec(record, 0..12), any::<bool>(), any::<bool>()).prop_map(|(records, mark, ends)| {
        let mut file = String::from(if mark { "\u{feff}" } else { "" });
        for (cells, end) in &records {
            file += &cells.join(",");
            file += end;
        }
        if !ends {
            file.truncate(file.trim_end_matches(['\r', '\n']).len());
        }
        file.into_bytes()
    })
}

/// The obvious way: the csv-core reader over the whole file at once.
fn simple_records(file: &[u8]) -> Vec<Vec<String>> {
    let mut reader = csv_core::Reader::new();
    let (mut output, mut ends) = (vec![0; file.len() + 1], vec![0; file.len() + 1]);
    let (mut records, mut input) = (Vec::new(), file);
    loop {
        let (result, read, _, cells) = reader.read_record(input, &mut output, &mut ends);
        input = &input[read..];
        let (result, cells) = match result {
            csv_core::ReadRecordResult::InputEmpty => {
                let (result, _, _, more) = reader.read_record(
                    &[],
                    &mut output[ends_at(&ends, cells)..],
                    &mut ends[cells..],
                );
                (result, cells + more)
            }
            result => (result, cells),
        };
        match result {
            csv_core::ReadRecordResult::Record => {
                let starts = std::iter::once(0).chain(ends.iter().copied());
                let cell = |(start, end): (usize, usize)| {
                    String::from_utf8(output[start..end].to_vec()).unwrap()
                };
                records.push(
                    starts
                        .zip(ends.iter().copied())
                        .take(cells)
                        .map(cell)
                        .collect(),
                );
            }
            csv_core::ReadRecordResult::End => return records,
            other => panic!("{other:?}"),
        }
    }
}

fn ends_at(ends: &[usize], cells: usize) -> usize {
    if cells == 0 { 0 } else { ends[cells - 1] }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_line_is_read_exactly_once(
        file in lines_file(),
        cuts in sorted_cuts(),
        window_bytes in vec(1_usize..40, 1..5),
    ) {
        let read = rows(&file, &cuts, &window_bytes, &RowEnd::Newline);
        prop_assert_eq!(read, simple_lines(&file));
    }

    #[test]
    fn every_record_is_read_exactly_once(
        file in csv_file(),
        target_bytes in 1_u64..60,
        window_bytes in vec(1_usize..40, 1..5),
    ) {
        let scanner = || RowEnd::NewlineOutsideQuotes(QuoteScanner::new());
        let whole = rows(&file, &[], &[usize::MAX], &scanner());
        let cuts = crate::plan::csv_cuts_of(&file, target_bytes);
        prop_assert_eq!(&rows(&file, &cuts, &window_bytes, &scanner()), &whole);
        let mut cells = Cells::new();
        let records = whole.iter().map(|(_, bytes)| {
            let count = cells.split(bytes, 100).unwrap();
            (0..count).map(|index| cells.get(index).unwrap().to_owned()).collect::<Vec<_>>()
        });
        prop_assert_eq!(records.collect::<Vec<_>>(), simple_records(&file));
    }

    #[test]
    fn no_cut_lies_inside_a_record(file in csv_file(), target_bytes in 1_u64..60) {
        let scanner = RowEnd::NewlineOutsideQuotes(QuoteScanner::new());
        let starts: Vec<_> =
            rows(&file, &[], &[usize::MAX], &scanner).iter().map(|(offset, _)| *offset).collect();
        for cut in crate::plan::csv_cuts_of(&file, target_bytes) {
            let next = starts.iter().find(|start| **start >= cut).copied();
            let between = &file[cut as usize..next.unwrap_or(file.len() as u64) as usize];
            prop_assert!(between.iter().all(|byte| matches!(byte, b'\r' | b'\n')));
        }
    }
}

#[test]
fn a_gigabyte_without_a_newline_takes_no_memory() {
    let mut splitter = Splitter::new(RowEnd::Newline, 0, u64::MAX, 1 << 20);
    let window = Bytes::from(vec![b'a'; 1 << 20]);
    for _ in 0..1024 {
        assert_eq!(splitter.next(), Split::More);
        splitter.push(window.clone());
    }
    assert_eq!(splitter.next(), Split::More);
    assert!(splitter.held_bytes() <= 4 << 20);
    splitter.push(Bytes::from_static(b"\nb\n"));
    assert_eq!(splitter.next(), Split::TooLong { offset: 0 });
    let row = Split::Row {
        offset: (1 << 30) + 1,
        bytes: b"b",
        open_quote: false,
    };
    assert_eq!(splitter.next(), row);
}

#[test]
fn the_longest_row_is_exactly_as_long_as_allowed() {
    for end in ["\n", "\r\n", ""] {
        let file = format!("12345{end}");
        for window in [3, 4, 5, 6, 7, 100] {
            let length_max = |row_bytes_max| {
                let mut splitter = Splitter::new(RowEnd::Newline, 0, u64::MAX, row_bytes_max);
                let mut windows = file.as_bytes().chunks(window);
                loop {
                    match splitter.next() {
                        Split::More => match windows.next() {
                            Some(window) => splitter.push(Bytes::copy_from_slice(window)),
                            None => splitter.finish(),
                        },
                        Split::Row { bytes, .. } => break bytes.len(),
                        Split::TooLong { .. } => break 0,
                        Split::End => panic!("there is a row"),
                    }
                }
            };
            assert_eq!(
                (length_max(5), length_max(4)),
                (5, 0),
                "{end:?} in windows of {window}"
            );
        }
    }
}
