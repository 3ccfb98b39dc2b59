//! Detectors of live networks: which network is watched, and the door that adopts its newest version.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{find, invalid, known, view};
use crate::ferret::snapshot::NetworkSnapshot;
use crate::fold::Version;
use crate::http::App;
use crate::http::problem::Problem;
use crate::method::nearside::Setting;
use crate::method::nearside::parent::{Adoption, Watched, freeze};
use crate::model::blobs::name_of;
use crate::model::live::{ChangeError, Live, Published, Wish, Wished};
use crate::model::network;

/// What a detector's spec says of the network of this name, and, of a detector that is to be made, the network itself. Where the detector is there
/// already, it is what that one watches: a body that is put again means the same, whatever has become of the network.
pub(super) fn watched(app: &App, detector: &str, name: &str) -> Result<(Watched, Option<Arc<Live>>), Problem> {
    let before = app.models.get(detector).ok().and_then(|live| of(&live)).filter(|watched| watched.model == name);
    if let Some(watched) = before {
        return Ok((watched, None));
    }
    let parent = app.models.get(name).map_err(|error| invalid(format!("watches: {error}")))?;
    if parent.spec.kind != network::KIND {
        return Err(invalid(format!("watches: `{name}` is of kind `{}`, and no network", parent.spec.kind)));
    }
    Ok((described(&parent), Some(parent)))
}

fn described(parent: &Live) -> Watched {
    // How it is trained does not say what it is.
    let network = parent.spec.settings.get("network").map(|network| ("network".to_owned(), network.clone()));
    Watched { model: parent.name.clone(), settings: network.into_iter().collect(), schema: parent.stream.schema.clone() }
}

/// The name of the live network that a detector watches.
pub(in crate::http) fn watched_model(live: &Live) -> Option<&str> {
    live.spec.settings.get("watches")?["model"].as_str()
}

/// What a detector watches, if it is a live network.
pub(super) fn of(live: &Live) -> Option<Watched> {
    serde_json::from_value(live.spec.settings.get("watches")?.clone()).ok()
}

/// The newest version of a network. To be let go of soon: its trainer may wait for readers.
fn newest(parent: &Live) -> Result<(Version, Arc<NetworkSnapshot>), String> {
    let published = parent.published();
    let any: Arc<dyn Any + Send + Sync> = published.snapshot.clone();
    let snapshot = any.downcast().map_err(|_| format!("model `{}` stands still and shows no version", parent.name))?;
    Ok((published.version, snapshot))
}

/// To adopt the version of a network that is the newest when this is called.
fn adoption(parent: &Live) -> Result<Wished, String> {
    let (version, snapshot) = newest(parent)?;
    let weights = freeze(&snapshot).map_err(|error| error.to_string())?;
    let adoption = Adoption { model_id: parent.id, version, weights: name_of(&weights) };
    Ok(Wished { value: json!(Setting::Adopt(adoption)), blob: Some(weights) })
}

/// What a new detector of a network begins with.
///
/// # Errors
/// The network has no version to show.
pub(super) fn to_begin_with(parent: Arc<Live>) -> Result<Wish, Problem> {
    shown(&parent)?;
    Ok(Box::new(move || adoption(&parent).map(Some)))
}

/// The version of a network that readers see.
fn shown(parent: &Live) -> Result<Version, Problem> {
    Ok(newest(parent).map_err(|reason| Problem::conflict("model_failed", reason))?.0)
}

/// Whether readers see a detector look through this version of a network, or a later one.
fn shows(published: &Published, model_id: u32, version: Version) -> bool {
    let snapshot = known(published.snapshot.clone());
    let adopted = snapshot.as_ref().and_then(|snapshot| snapshot.watching.as_ref()).map(|watching| &watching.adopted);
    adopted.is_some_and(|adopted| adopted.covers(model_id, version))
}

/// The version that a detector is adopting.
pub(super) fn under_way(live: &Live) -> Option<Adoption> {
    let setting = live.status_lent().under_way.clone()?;
    match serde_json::from_value(setting).ok()? {
        Setting::Adopt(adoption) => Some(adoption),
        Setting::Threshold(_) => None,
    }
}

/// What it takes to have something decided, at least.
const A_MOMENT: Duration = Duration::from_secs(1);

/// How long is waited for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct AdoptQuery {
    timeout_seconds: Option<u64>,
}

/// Looks through the newest version of the network from here on; answered when readers see it so, or, where that takes long, when it is
/// decided.
pub(in crate::http) async fn adopt(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(AdoptQuery { timeout_seconds }): Query<AdoptQuery>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let longest = Duration::from_secs(timeout_seconds.unwrap_or(app.wait_seconds_max).min(app.wait_seconds_max));
    let deadline = Instant::now() + longest;
    let live = find(&app, &name)?;
    let watched = of(&live).ok_or_else(|| {
        let detail = format!("detector `{name}` watches a frozen encoder, which has one version");
        Problem::unprocessable("invalid_change", detail)
    })?;
    let parent = app.models.get(&watched.model)?;
    if described(&parent) != watched {
        let detail = format!(
            "model `{}` is another network than the one that detector `{name}` watches: make a detector of it",
            parent.name
        );
        return Err(Problem::conflict("network_changed", detail));
    }
    let (model_id, version) = (parent.id, shown(&parent)?);
    let is_seen = move |published: &Published| shows(published, model_id, version);
    let is_coming = |live: &Live| under_way(live).is_some_and(|adoption| adoption.covers(model_id, version));
    if !is_seen(&live.published()) && !is_coming(&live) {
        let detector = live.clone();
        let wish: Wish = Box::new(move || {
            // Who asked at the same time may have brought it about.
            if is_seen(&detector.published()) { Ok(None) } else { adoption(&parent).map(Some) }
        });
        // To be decided takes a moment at least, and behind another one as long as that.
        let soon = Instant::now() + A_MOMENT;
        tokio::select! {
            decided = live.set(wish, Some(deadline.max(soon).into())) => decided?,
            // Or somebody else's is; where the detector has ended, the other one says so.
            true = live.shows(|published| is_seen(published) || is_coming(&live)) => {}
        }
    }
    match tokio::time::timeout_at(deadline.into(), live.shows(is_seen)).await {
        Ok(true) => Ok((StatusCode::OK, Json(view(&live)))),
        Ok(false) => Err(gone(&app, &live)),
        Err(_) => Ok((StatusCode::ACCEPTED, Json(view(&live)))),
    }
}

/// A detector that has ended while it was waited for.
fn gone(app: &App, live: &Live) -> Problem {
    let is_there = app.models.get(&live.name).is_ok_and(|other| other.id == live.id);
    match live.status_lent().failure.clone().filter(|_| is_there) {
        Some(failure) => ChangeError::Failed(failure).into(),
        None => Problem::not_found("detector", &live.name),
    }
}
