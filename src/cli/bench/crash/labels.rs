//! The clients that label rows later: each batch of labels under its own idempotency key, again and again until it is acknowledged.
//!
//! Most labels are of rows that wait for them. Others are of rows that have theirs, and say something else; of rows that are long
//! past, that are only about to be posted, or that never are.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::Ground;
use super::door::{Answer, Request};
use super::posts::{Place, encoding};
use super::rows::{Encoding, Shape, class, comes_labelled};
use super::script::{DELAYED, DELAYED_MODEL, Draws};
use crate::cli::Failure;
use crate::stream::decode::Format;

/// Ids that no row has, those of one client from its number times [`NEVER_OF_ONE`] on.
const NEVER: u64 = 1 << 40;
const NEVER_OF_ONE: u64 = 1 << 24;
/// The longest rest between two batches.
const REST: Duration = Duration::from_millis(10);
/// Labels of a batch, and of one in forty, which is more than one record holds.
const LABELS: Range<u64> = 1..80;
const MANY_LABELS: Range<u64> = 1025..1300;

/// One label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) id: u64,
    pub(super) class: u32,
    /// Whether its row had been acknowledged before the label was sent for the first time.
    pub(super) is_known: bool,
}

/// What an acknowledgement said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) place: Place,
    pub(super) unmatched_count: u64,
    /// Places in the batch with their ids, as many as were listed.
    pub(super) unmatched: Vec<(u64, u64)>,
}

/// One batch of labels, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct LabelPost {
    pub(super) key: String,
    pub(super) labels: Vec<Said>,
    format: Format,
    /// None: it was given up without an acknowledgement. The first label of a batch that may be is of a row that no other one names.
    pub(super) taken: Option<Taken>,
}

impl LabelPost {
    /// A batch as a test of the oracle needs it.
    #[cfg(test)]
    pub(super) fn of(labels: &[Said], taken: Option<Taken>) -> LabelPost {
        LabelPost { key: format!("labels-{}", labels[0].id), labels: labels.to_vec(), format: Format::Json, taken }
    }

    fn request(&self, shape: Shape, encoding: Encoding, query: &str) -> Result<Request, Failure> {
        let headers = vec![
            ("content-type", self.format.content_type().to_owned()),
            ("content-encoding", encoding.word().to_owned()),
            ("idempotency-key", self.key.clone()),
        ];
        let labels: Vec<(u64, u32)> = self.labels.iter().map(|said| (said.id, said.class)).collect();
        let body = encoding.of(shape.labels(self.format, &labels)?)?;
        Ok(Request { method: Method::POST, path: format!("/v1/streams/{DELAYED}/labels{query}"), headers, body })
    }

    /// What an answer says.
    fn read(&self, answer: &Answer) -> Result<Taken, Failure> {
        let number = |name: &str| answer.body[name].as_u64();
        let read = || {
            let (first, last, labels) = (number("first_sequence")?, number("sequence")?, number("labels")?);
            let listed = answer.body["unmatched"].as_array()?;
            let one = |label: &Value| Some((label["row"].as_u64()?, label["id"].as_str()?.parse().ok()?));
            let unmatched = listed.iter().map(one).collect::<Option<_>>()?;
            let is_whole = answer.is_success() && labels == last + 1 - first && labels == self.labels.len() as u64;
            let place = Place { first, last };
            is_whole.then_some(Taken { place, unmatched_count: number("unmatched_labels")?, unmatched })
        };
        read().ok_or_else(|| format!("the labels {} were answered with {}: {}", self.key, answer.status, answer.body).into())
    }
}

/// What one client knows of the rows.
struct Labeller {
    number: u64,
    draws: Draws,
    /// Rows without a label, oldest first, and whether they are known to be there.
    waiting: Vec<(u64, bool)>,
    /// Rows that have a label.
    labelled: Vec<u64>,
    /// The ids of rows that may be posted just now.
    upcoming: u64,
    /// How many ids that no row has were named.
    never: u64,
}

/// One client: labels rows until the round is done.
pub(super) async fn client(ground: Arc<Ground>, number: u64) -> Result<Vec<LabelPost>, Failure> {
    let script = &ground.script;
    let shape = script.shape(DELAYED).ok_or("there is no stream of late labels")?;
    let draws = Draws::new(script.seed, script.round, &format!("labels {number}"));
    let mut labeller = Labeller { number, draws, waiting: Vec::new(), labelled: Vec::new(), upcoming: 0, never: 0 };
    let mut posts = Vec::new();
    while !ground.is_done() {
        tokio::time::sleep(labeller.draws.below(REST)).await;
        let come = std::mem::take(&mut *ground.to_label.lock());
        labeller.hear(&come);
        if labeller.waiting.is_empty() && labeller.labelled.is_empty() {
            continue;
        }
        let gives_up = labeller.draws.once_in(10);
        let labels = labeller.batch(gives_up);
        let format = labeller.draws.one_of(&Format::ALL);
        let post = LabelPost { key: format!("labels-{number}-{}", posts.len()), labels, format, taken: None };
        posts.push(send(&ground, &mut labeller.draws, shape, post, gives_up).await?);
    }
    Ok(posts)
}

impl Labeller {
    /// Rows have come.
    fn hear(&mut self, come: &[(Range<u64>, bool)]) {
        for (ids, is_known) in come {
            let (labelled, waiting): (Vec<u64>, Vec<u64>) = ids.clone().partition(|&id| comes_labelled(id));
            self.labelled.extend(labelled);
            self.waiting.extend(waiting.into_iter().map(|id| (id, *is_known)));
            self.upcoming = ids.end;
        }
    }

    /// Labels, the first of them of a row that no other one names where `is_marked`.
    fn batch(&mut self, is_marked: bool) -> Vec<Said> {
        let count = if self.draws.once_in(40) { MANY_LABELS } else { LABELS };
        let count = self.draws.within(count);
        // The newest rows, or any.
        let newest = self.draws.once_in(2);
        let mut labels: Vec<Said> = is_marked.then(|| self.never()).into_iter().collect();
        for _ in 0..count {
            let said = self.one(newest);
            labels.push(said);
        }
        labels
    }

    fn one(&mut self, newest: bool) -> Said {
        let way = self.draws.within(0..20);
        if way == 0 {
            return self.never();
        }
        if way == 1 && self.upcoming > 0 {
            let id = self.upcoming + self.draws.within(0..40);
            return Said { id, class: class(id, 0), is_known: false };
        }
        if way > 3 && !self.waiting.is_empty() {
            let most = self.waiting.len();
            let back = if newest { 1 + self.draws.within(0..50.min(most as u64)) as usize } else { 0 };
            let at = if newest { most - back } else { self.draws.within(0..most as u64) as usize };
            let (id, is_known) = self.waiting.remove(at);
            self.labelled.push(id);
            return Said { id, class: class(id, 0), is_known };
        }
        match self.labelled.len() as u64 {
            0 => self.never(),
            most => {
                let id = self.labelled[self.draws.within(0..most) as usize];
                // A row that was labelled may have come without an acknowledgement.
                Said { id, class: class(id, 1), is_known: false }
            }
        }
    }

    /// A label of a row that is never posted.
    fn never(&mut self) -> Said {
        self.never += 1;
        let id = NEVER + self.number * NEVER_OF_ONE + self.never;
        Said { id, class: class(id, 0), is_known: false }
    }
}

/// Posts one batch in one of the ways that clients have.
async fn send(
    ground: &Ground,
    draws: &mut Draws,
    shape: Shape,
    mut post: LabelPost,
    gives_up: bool,
) -> Result<LabelPost, Failure> {
    let waits = format!("?wait=applied&timeout_seconds=1&model={DELAYED_MODEL}");
    let request = post.request(shape, encoding(draws), if draws.once_in(8) { &waits } else { "" })?;
    if gives_up {
        let (answer, _) = ground.door.insist(&request, true).await?;
        acknowledge(ground, &mut post, answer.as_ref())?;
    } else if draws.once_in(10) {
        // Twice at once.
        let (one, other) = tokio::join!(ground.door.insist(&request, false), ground.door.insist(&request, false));
        for (answer, _) in [one?, other?] {
            acknowledge(ground, &mut post, answer.as_ref())?;
        }
    } else {
        let (answer, _) = ground.door.insist(&request, false).await?;
        acknowledge(ground, &mut post, answer.as_ref())?;
        // Once more, later, compressed otherwise, as if the answer had been lost.
        if draws.once_in(10) {
            tokio::time::sleep(draws.below(REST)).await;
            again(ground, shape, &mut post, encoding(draws)).await?;
        }
    }
    Ok(post)
}

/// Notes what an answer says of a post; anything else than before is a complaint.
fn acknowledge(ground: &Ground, post: &mut LabelPost, answer: Option<&Answer>) -> Result<(), Failure> {
    let Some(answer) = answer else { return Ok(()) };
    let taken = post.read(answer)?;
    if let Some(before) = post.taken.replace(taken)
        && post.taken.as_ref() != Some(&before)
    {
        ground.complain(format!("the labels {} were acknowledged as {before:?} and then as {:?}", post.key, post.taken));
    }
    Ok(())
}

/// Posts once more what was acknowledged: the answer is to be the same, and to say that it is no new one.
pub(super) async fn again(ground: &Ground, shape: Shape, post: &mut LabelPost, encoding: Encoding) -> Result<(), Failure> {
    let (answer, _) = ground.door.insist(&post.request(shape, encoding, "")?, false).await?;
    if let Some(answer) = answer.as_ref().filter(|answer| !answer.is_replayed) {
        ground.complain(format!("the labels {} were taken as new ones: {}", post.key, answer.body));
    }
    acknowledge(ground, post, answer.as_ref())
}
