//! The client that changes things while others post: budgets, learning rates, plans, and which models there are.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::Ground;
use super::door::Request;
use super::script::{Draws, ModelScript};
use crate::cli::Failure;

/// The longest rest between two changes.
const REST: Duration = Duration::from_millis(60);
/// A model that is made, deleted, and made again.
const SCRATCH: &str = "scratch";

/// A learning rate that was asked for. Each is asked for only once, but for answers that were lost.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    pub(super) model: String,
    pub(super) rate: f64,
    /// How often: answers are lost.
    pub(super) sent: u64,
    pub(super) is_acknowledged: bool,
}

/// Makes streams and models, whatever comes between.
pub(super) async fn set_up(ground: &Ground) -> Result<(), Failure> {
    for stream in &ground.script.streams {
        ground.door.must(&Request::json(Method::PUT, format!("/v1/streams/{}", stream.name), &stream.shape.schema())).await?;
    }
    for model in &ground.script.models {
        ground.door.must(&put_model(&model.name, model)).await?;
    }
    Ok(())
}

fn put_model(name: &str, model: &ModelScript) -> Request {
    Request::json(Method::PUT, format!("/v1/models/{name}"), &model.spec)
}

/// Makes changes until the round is done; gives the learning rates.
pub(super) async fn client(ground: Arc<Ground>) -> Result<Vec<Rate>, Failure> {
    let script = &ground.script;
    let mut draws = Draws::new(script.seed, script.round, "changes");
    let mut rates = Vec::new();
    change(&ground, &put_model(&script.late.name, &script.late)).await?;
    while !ground.is_done() {
        tokio::time::sleep(draws.below(REST)).await;
        let model = &script.models[draws.within(0..script.models.len() as u64) as usize];
        let of_model = |method, door: &str, body: Value| Request::json(method, format!("/v1/models/{}{door}", model.name), &body);
        let request = match draws.within(0..10) {
            0..3 => {
                let budget = budget(&ground, &mut draws, &format!("/v1/models/{}/memory-budget", model.name)).await?;
                of_model(Method::PUT, "/memory-budget", json!({ "budget": budget }))
            }
            3..6 => {
                let rate = 0.005 + rates.len() as f64 / (1 << 20) as f64;
                let request = of_model(Method::PATCH, "", json!({ "learning_rate": rate }));
                let (is_acknowledged, sent) = change(&ground, &request).await?;
                rates.push(Rate { model: model.name.clone(), rate, sent, is_acknowledged });
                continue;
            }
            6..8 => of_model(Method::PUT, "/plan", plan(&mut draws)),
            8 => {
                let budget = budget(&ground, &mut draws, "/v1/memory-budget").await?;
                let body = json!({ "budget": budget, "weights": { "m0": draws.one_of(&[0.5, 1.0, 2.0]) } });
                Request::json(Method::PUT, "/v1/memory-budget".into(), &body)
            }
            _ if draws.once_in(2) => put_model(SCRATCH, model),
            _ => Request { method: Method::DELETE, ..Request::get(format!("/v1/models/{SCRATCH}")) },
        };
        change(&ground, &request).await?;
    }
    Ok(rates)
}

/// Asks for one change; whether it was taken, and how often it was asked for. A refusal is no fault: plans do not always fit.
async fn change(ground: &Ground, request: &Request) -> Result<(bool, u64), Failure> {
    ground.changes.fetch_add(1, Relaxed);
    ground.changing.send_replace(true);
    let answered = ground.door.insist(request, false).await;
    ground.changing.send_replace(false);
    let (answer, made) = answered?;
    let Some(answer) = answer else { return Ok((false, made)) };
    if answer.status >= 500 || answer.body["code"] == "model_failed" {
        ground.complain(format!("{} {} {}: {}", request.method, request.path, answer.status, answer.body));
    }
    Ok((answer.is_success(), made))
}

/// A budget for the models behind a door: none, the least that they need, or some more.
async fn budget(ground: &Ground, draws: &mut Draws, door: &str) -> Result<Option<u64>, Failure> {
    if draws.once_in(3) {
        return Ok(None);
    }
    let view = ground.door.must(&Request::get(door.to_owned())).await?;
    let least = view["minimum_bytes"].as_u64().ok_or("no minimum_bytes")?;
    Ok(Some(least * draws.one_of(&[100, 110, 150, 300]) / 100))
}

/// A plan by hand for a network of four to six layers; some of them are refused.
fn plan(draws: &mut Draws) -> Value {
    let end = draws.within(3..7);
    let stage = |draws: &mut Draws, start: u64, end: u64| {
        let layers = json!({ "start": start, "end": end });
        json!({ "layers": layers, "recompute": draws.once_in(3), "accumulation": draws.one_of(&[1, 1, 1, 2, 3]) })
    };
    let stages = match draws.once_in(2) {
        true => vec![stage(draws, 0, end)],
        false => {
            let cut = draws.within(2..end);
            vec![stage(draws, 0, cut), stage(draws, cut, end)]
        }
    };
    let publication = draws.one_of(&["continuous", "at_drain"]);
    json!({ "stages": stages, "workers": draws.within(1..4), "publication": publication })
}
