//! Random bytes for tests of what reads bytes from outside: the files of `tests/corpus`, changed at random.
//! `scripts/fuzz-inputs` runs these tests for as long as it is told.

use proptest::prelude::*;
use proptest::sample::Index;

/// A change of some bytes.
#[derive(Debug, Clone)]
enum Edit {
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Overwrite(Index, u8),
    /// Puts a part of another file in.
    Splice(Index, Index, Index, usize),
}

fn edits() -> impl Strategy<Value = Edit> {
    let token = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..8),
        "[0-9eE.+-]{1,24}|[\\[\\]{}\",:=\\\\]{1,12}|\\PC{1,6}".prop_map(String::into_bytes),
        Just(b"\xef\xbb\xbf".to_vec()),
        Just("\u{0}\u{202e}".into()),
    ];
    let at = any::<Index>;
    prop_oneof![
        (at(), token).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at(), 1..40_usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Overwrite(at, byte)),
        (at(), at(), at(), 1..80_usize)
            .prop_map(|(at, file, from, count)| Edit::Splice(at, file, from, count)),
    ]
}

/// A file of `tests/corpus/TARGET`, as it is or changed.
pub(crate) fn inputs(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let folder = format!("{}/tests/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> =
        std::fs::read_dir(&folder).expect(&folder).map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let files: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    (any::<Index>(), prop::collection::vec(edits(), 0..6)).prop_map(move |(file, edits)| {
        let mut bytes = file.get(&files).clone();
        for edit in edits {
            apply(&mut bytes, &edit, &files);
        }
        bytes
    })
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit, files: &[Vec<u8>]) {
    let place = |at: &Index| at.index(bytes.len() + 1);
    match edit {
        Edit::Insert(at, new) => drop(bytes.splice(place(at)..place(at), new.iter().copied())),
        Edit::Remove(at, count) => {
            let at = place(at);
            bytes.drain(at..(at + count).min(bytes.len()));
        }
        Edit::Overwrite(at, byte) => {
            let at = place(at);
            if let Some(old) = bytes.get_mut(at) {
                *old = *byte;
            }
        }
        Edit::Splice(at, file, from, count) => {
            let file = file.get(files);
            let from = from.index(file.len() + 1);
            let part = &file[from..(from + count).min(file.len())];
            drop(bytes.splice(place(at)..place(at), part.iter().copied()));
        }
    }
}
