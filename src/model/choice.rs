//! Which of the rows that wait are learned, where not all can be: by chance, or those that stand for the others.

use rand_chacha::rand_core::RngCore;

use crate::rows::{Block, Element, Rows, Target};

/// `count` of `all` numbers, each as likely as any other, in their order.
pub fn by_chance(all: usize, count: usize, generator: &mut impl RngCore) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..all).collect();
    let count = count.min(all);
    for at in 0..count {
        let other = at + (generator.next_u64() % (all - at) as u64) as usize;
        numbers.swap(at, other);
    }
    numbers.truncate(count);
    numbers.sort_unstable();
    numbers
}

/// `count` rows that stand for all, in their order (a coreset, as Camel's sampler takes it; a reconstruction from the paper's words,
/// on input features, where Camel goes by gradients). Each class has its share of them, and gets greedily whatever row makes the sum
/// over the class, of the similarity to the most similar row that was chosen, grow the most. Rows without classes are of one.
pub fn coreset(rows: &Rows, count: usize) -> Vec<usize> {
    let points = points(rows);
    let count = count.min(rows.count);
    let mut members: Vec<Vec<usize>> = Vec::new();
    for row in 0..rows.count {
        let class = match &rows.target {
            Some(Target::Classes(classes)) => classes[row] as usize,
            _ => 0,
        };
        members.resize(members.len().max(class + 1), Vec::new());
        members[class].push(row);
    }
    let mut classes: Vec<Greedy> =
        members.into_iter().filter(|rows| !rows.is_empty()).map(|of| Greedy::new(of, &points)).collect();
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count {
        // The class that is the furthest behind its share; the lower one of two.
        let behind = |class: &Greedy| class.rows.len() as f64 / (class.chosen + 1) as f64;
        let open = classes.iter_mut().filter(|class| class.chosen < class.rows.len());
        let next = open.max_by(|a, b| behind(a).total_cmp(&behind(b)).then(b.rows.cmp(&a.rows)));
        let Some(class) = next else { break };
        chosen.push(class.take());
    }
    chosen.sort_unstable();
    chosen
}

/// Bytes that [`coreset`] takes for so many rows of so many numbers, beside the rows.
pub fn coreset_bytes(rows: u64, width: u64) -> u64 {
    size_of::<f32>() as u64 * rows * (width + rows)
}

/// What distances are measured between: pictures' bytes as shares of 255, and other numbers by how much they vary, because one column
/// may be in metres and another in euros.
fn points(rows: &Rows) -> Vec<Vec<f32>> {
    let mut points = vec![Vec::with_capacity(rows.blocks.iter().map(|block| block.width).sum()); rows.count];
    for block in &rows.blocks {
        let scales = scales(block, rows.count);
        for (point, row) in points.iter_mut().zip(block.bytes.chunks(block.row_bytes().max(1))) {
            point.extend(numbers(block.element, row).zip(&scales).map(|(number, scale)| number * scale));
        }
    }
    points
}

fn numbers(element: Element, row: &[u8]) -> Box<dyn Iterator<Item = f32> + '_> {
    match element {
        Element::U8 => Box::new(row.iter().map(|&byte| f32::from(byte))),
        Element::F32 => Box::new(row.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word))),
    }
}

/// What each number of a row is multiplied with.
fn scales(block: &Block, count: usize) -> Vec<f32> {
    if block.element == Element::U8 {
        return vec![1.0 / 255.0; block.width];
    }
    let (mut sums, mut squares) = (vec![0.0f64; block.width], vec![0.0f64; block.width]);
    for row in block.bytes.chunks(block.row_bytes().max(1)) {
        for ((sum, square), number) in sums.iter_mut().zip(&mut squares).zip(numbers(block.element, row)) {
            *sum += f64::from(number);
            *square += f64::from(number) * f64::from(number);
        }
    }
    let count = count as f64;
    let scale = |(sum, square): (f64, f64)| {
        let deviation = (square / count - (sum / count).powi(2)).max(0.0).sqrt();
        if deviation > f64::MIN_POSITIVE { (1.0 / deviation) as f32 } else { 0.0 }
    };
    sums.into_iter().zip(squares).map(scale).collect()
}

/// One class of rows while some of it are chosen.
struct Greedy {
    rows: Vec<usize>,
    /// Between each two of them.
    similarity: Vec<Vec<f32>>,
    /// Of each to the most similar one that is chosen.
    covered: Vec<f32>,
    taken: Vec<bool>,
    chosen: usize,
}

impl Greedy {
    fn new(rows: Vec<usize>, points: &[Vec<f32>]) -> Greedy {
        let distance = |a: usize, b: usize| points[a].iter().zip(&points[b]).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt();
        let mut similarity: Vec<Vec<f32>> = rows.iter().map(|&a| rows.iter().map(|&b| distance(a, b)).collect()).collect();
        let furthest = similarity.iter().flatten().copied().fold(0.0, f32::max);
        similarity.iter_mut().flatten().for_each(|distance| *distance = furthest - *distance);
        let count = rows.len();
        Greedy { rows, similarity, covered: vec![0.0; count], taken: vec![false; count], chosen: 0 }
    }

    /// The row that gains the most, the first of several.
    fn take(&mut self) -> usize {
        let gain = |row: usize| -> f32 {
            let pairs = self.similarity[row].iter().zip(&self.covered);
            pairs.map(|(similar, covered)| (similar - covered).max(0.0)).sum()
        };
        let open = (0..self.rows.len()).filter(|&row| !self.taken[row]);
        let best = open.max_by(|&a, &b| gain(a).total_cmp(&gain(b)).then(b.cmp(&a))).unwrap_or(0);
        for (covered, similar) in self.covered.iter_mut().zip(&self.similarity[best]) {
            *covered = covered.max(*similar);
        }
        (self.taken[best], self.chosen) = (true, self.chosen + 1);
        self.rows[best]
    }
}

#[cfg(test)]
mod tests {
    use crate::network::random;

    use super::*;

    /// Rows of one feature.
    fn bytes(values: &[u8], classes: &[u32]) -> Rows {
        let blocks = vec![Block { element: Element::U8, width: 1, bytes: values.to_vec().into() }];
        Rows { count: values.len(), blocks, target: Some(Target::Classes(classes.to_vec())), ..Rows::default() }
    }

    #[test]
    fn a_coreset_stands_for_its_classes() {
        // Four rows of class 0 about 13 and one outlier, two of class 1.
        let rows = bytes(&[10, 12, 14, 16, 90, 200, 210], &[0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(coreset(&rows, 1), [2], "the middle one of the larger class");
        assert_eq!(coreset(&rows, 3), [2, 4, 5], "then the outlier, and one of the smaller class");
        assert_eq!(coreset(&rows, 9), [0, 1, 2, 3, 4, 5, 6]);
        let unlabelled = Rows { target: None, ..rows };
        assert_eq!(coreset(&unlabelled, 9).len(), 7);
    }

    #[test]
    fn columns_count_by_how_much_they_vary() {
        // The first column tells two clusters apart and is a thousand times smaller than the noise-free second, which is constant.
        let values: Vec<f32> = [[0.001, 5e3], [0.0011, 5e3], [0.0012, 5e3], [0.009, 5e3], [0.0091, 5e3]].concat();
        let block = Block { element: Element::F32, width: 2, bytes: bytemuck::cast_slice(&values).to_vec().into() };
        let rows = Rows { count: 5, blocks: vec![block], target: Some(Target::Values(vec![0.0; 5])), ..Rows::default() };
        let chosen = coreset(&rows, 2);
        assert!(chosen[0] < 3 && chosen[1] >= 3, "one of each cluster: {chosen:?}");
    }

    #[test]
    fn chance_is_fair_and_replays() {
        let draw = |ordinal| by_chance(10, 4, &mut random::stream(1, ordinal, "random-n"));
        assert_eq!(draw(5), draw(5));
        let mut times = [0u32; 10];
        for ordinal in 0..5000 {
            let chosen = draw(ordinal);
            assert!(chosen.len() == 4 && chosen.is_sorted());
            chosen.into_iter().for_each(|number| times[number] += 1);
        }
        // Chi-square of nine degrees of freedom: beyond 28 once in a thousand times.
        let chi: f64 = times.iter().map(|&times| (f64::from(times) - 2000.0).powi(2) / 2000.0).sum();
        assert!(chi < 28.0, "{times:?}");
    }
}
