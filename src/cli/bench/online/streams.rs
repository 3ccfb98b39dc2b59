//! The streams that are compared on: pictures in IDX files, numbers in CSV files, and what is held back to test on.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use rand_chacha::rand_core::RngCore;

use crate::cli::Failure;
use crate::cli::demo::{IMAGES, LABELS};
use crate::cli::idx::Idx;
use crate::network::random;
use crate::rows::{Block, Element, Rows, Target};

/// Of the pictures that the program carries, so many are held back.
const CARRIED_TEST: usize = 2000;
/// Of a table's rows, one in so many is held back.
const TABLE_TEST: usize = 5;
/// Classes of a task, in streams that bring one task after the other.
const TASK_CLASSES: u32 = 2;

/// Rows with labels, in the order of their arrival, and others to test on.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    /// Of one row.
    pub(super) input_shape: Vec<usize>,
    pub(super) classes: usize,
    /// Whether these are columns of numbers rather than pictures.
    pub(super) tabular: bool,
    pub(super) rows: Rows,
    pub(super) test: Rows,
}

impl Stream {
    /// Reads a stream by its name: `mnist`, `fashion-mnist`, `cifar10` or another folder of IDX files under `data`, a table NAME.csv
    /// there, or one of them after `split-`, which brings its classes in pairs, one after the other.
    pub(super) fn read(name: &str, data: &Path) -> Result<Stream, Failure> {
        let base = name.strip_prefix("split-").unwrap_or(name);
        let (folder, table) = (data.join(base), data.join(format!("{base}.csv")));
        if folder.is_dir() {
            let (train, test) = (pictures(&folder, "train", name)?, pictures(&folder, "t10k", name)?);
            return Ok(Stream { rows: train.0, test: test.0, ..of_pictures(&train.1) });
        }
        if table.is_file() {
            return read_table(&std::fs::read(&table)?);
        }
        if base == "fashion-mnist" {
            let (all, shape) = labelled(name, Idx::read(IMAGES)?, &Idx::read(LABELS)?)?;
            let stream = all.count - CARRIED_TEST;
            return Ok(Stream { rows: all.slice(0..stream), test: all.slice(stream..all.count), ..of_pictures(&shape) });
        }
        Err(format!("no stream {name}: neither {} nor {} is there", folder.display(), table.display()).into())
    }

    /// The rows in an order that `seed` draws, the first `limit` of them, and one task after the other where the name says so.
    pub(super) fn ordered(&self, name: &str, seed: u64, limit: Option<usize>) -> Stream {
        let mut order = shuffled(self.rows.count, seed);
        order.truncate(limit.unwrap_or(usize::MAX));
        if let (true, Some(Target::Classes(classes))) = (name.starts_with("split-"), &self.rows.target) {
            order.sort_by_key(|&row| classes[row] / TASK_CLASSES);
        }
        Stream { rows: self.rows.gather(&order), ..self.clone() }
    }
}

fn of_pictures(shape: &[usize]) -> Stream {
    let input_shape = if shape.len() == 2 { vec![1, shape[0], shape[1]] } else { shape.to_vec() };
    Stream { input_shape, classes: 10, tabular: false, rows: Rows::default(), test: Rows::default() }
}

/// Numbers below `count` in an order that `seed` draws.
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut generator = random::stream(seed, 0, "order of a stream");
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, (generator.next_u64() % (last as u64 + 1)) as usize);
    }
    order
}

/// The pictures whose files' names begin like this, and the shape of one.
fn pictures(folder: &Path, part: &str, name: &str) -> Result<(Rows, Vec<usize>), Failure> {
    let read = |what: &str| -> Result<Idx, Failure> {
        let begins = format!("{part}-{what}");
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&begins)));
        files.sort();
        let file = files.first().ok_or_else(|| format!("{name}: no {begins}* in {}", folder.display()))?;
        Idx::read(&std::fs::read(file)?)
    };
    labelled(name, read("images")?, &read("labels")?)
}

fn labelled(name: &str, images: Idx, labels: &Idx) -> Result<(Rows, Vec<usize>), Failure> {
    if images.count != labels.count || !labels.shape.is_empty() || !(2..=3).contains(&images.shape.len()) {
        return Err(format!("{name}: {} pictures of shape {:?}, but {} labels", images.count, images.shape, labels.count).into());
    }
    let classes = labels.bytes.iter().map(|&label| u32::from(label)).collect();
    let width = images.shape.iter().product();
    let blocks = vec![Block { element: Element::U8, width, bytes: Bytes::from(images.bytes) }];
    let rows = Rows { count: labels.count, blocks, target: Some(Target::Classes(classes)), ..Rows::default() };
    Ok((rows, images.shape))
}

/// A table with a header, of numbers and a last column of labels; a fifth of its rows, always the same ones, is held back.
fn read_table(file: &[u8]) -> Result<Stream, Failure> {
    let mut reader = csv::Reader::from_reader(file);
    let width = reader.headers()?.len().saturating_sub(1);
    let (mut features, mut labels): (Vec<f32>, Vec<String>) = (Vec::new(), Vec::new());
    for record in reader.records() {
        let record = record?;
        for field in record.iter().take(width) {
            let value: f32 = field.trim().parse().map_err(|_| format!("row {}: `{field}` is not a number", labels.len() + 1))?;
            features.push(value);
        }
        labels.push(record.get(width).unwrap_or_default().to_owned());
    }
    let mut names = labels.clone();
    names.sort_unstable();
    names.dedup();
    let classes = labels.iter().map(|label| names.partition_point(|name| name < label) as u32).collect();
    let bytes: Bytes = features.iter().flat_map(|value| value.to_le_bytes()).collect();
    let blocks = vec![Block { element: Element::F32, width, bytes }];
    let all = Rows { count: labels.len(), blocks, target: Some(Target::Classes(classes)), ..Rows::default() };
    let order = shuffled(all.count, 0);
    let (test, stream) = order.split_at(all.count / TABLE_TEST);
    let (rows, test) = (all.gather(stream), all.gather(test));
    Ok(Stream { input_shape: vec![width], classes: names.len(), tabular: true, rows, test })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_carried_pictures_are_a_stream() {
        let stream = Stream::read("fashion-mnist", Path::new("/nowhere")).unwrap();
        assert_eq!((stream.rows.count, stream.test.count, stream.input_shape.as_slice()), (8000, 2000, &[1, 28, 28][..]));
        assert!(Stream::read("mnist", Path::new("/nowhere")).is_err());
        let [one, same, other] = [1, 1, 2].map(|seed| stream.ordered("fashion-mnist", seed, Some(500)));
        assert!(one.rows == same.rows && one.rows != other.rows && one.rows.count == 500);
    }

    #[test]
    fn a_split_brings_pairs_of_classes_one_after_the_other() {
        let stream =
            Stream::read("split-fashion-mnist", Path::new("/nowhere")).unwrap().ordered("split-fashion-mnist", 3, Some(1000));
        let Some(Target::Classes(classes)) = stream.rows.target else { panic!("no classes") };
        assert!(classes.iter().map(|class| class / 2).is_sorted() && !classes.is_sorted());
        assert_eq!(classes.iter().max(), Some(&9));
    }

    #[test]
    fn a_table_is_read_with_its_labels_by_name() {
        let text: String = (0..10).map(|row| format!("{row},0.5,{}\n", if row % 2 == 0 { "yes" } else { "no" })).collect();
        let stream = read_table(format!("a,b,label\n{text}").as_bytes()).unwrap();
        assert_eq!((stream.rows.count, stream.test.count, stream.classes, stream.tabular), (8, 2, 2, true));
        let Some(Target::Classes(classes)) = &stream.rows.target else { panic!("no classes") };
        let (values, _) = stream.rows.blocks[0].bytes.as_chunks::<8>();
        for (value, class) in values.iter().zip(classes) {
            let first = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
            assert_eq!(*class, u32::from((first as u32).is_multiple_of(2)), "`no` comes before `yes`");
        }
        assert!(read_table(b"a,label\nx,1\n").is_err());
    }
}
