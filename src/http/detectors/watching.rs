//! Detectors of live networks: which network is watched, and the door that adopts its newest version.

use std::any::Any;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::{find, known, view};
use crate::ferret::snapshot::NetworkSnapshot;
use crate::fold::Version;
use crate::http::App;
use crate::http::problem::Problem;
use crate::method::nearside::Setting;
use crate::method::nearside::parent::{Adoption, Watched, freeze};
use crate::model::live::Live;
use crate::model::network;

/// What a detector's spec says of the network of this name. Where the detector is there already, it is what that one watches: a body that is put
/// again means the same, whatever has become of the network.
pub(super) fn watched(app: &App, detector: &str, name: &str) -> Result<Watched, Problem> {
    let before = app.models.get(detector).ok().and_then(|live| of(&live)).filter(|watched| watched.model == name);
    if let Some(watched) = before {
        return Ok(watched);
    }
    let unknown = |detail: String| Problem::unprocessable("invalid_detector", detail);
    let parent = app.models.get(name).map_err(|error| unknown(format!("watches: {error}")))?;
    if parent.spec.kind != network::KIND {
        return Err(unknown(format!("watches: `{name}` is of kind `{}`, and no network", parent.spec.kind)));
    }
    Ok(described(&parent))
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

/// The newest version of a network, as it is going to be adopted.
pub(super) struct Frozen {
    model_id: u32,
    version: Version,
    weights: Vec<u8>,
}

/// The newest version of what a detector watches.
///
/// # Errors
/// The network is gone, or another one by now, or has no version to show.
pub(super) fn frozen(app: &App, detector: &str, watched: &Watched) -> Result<Frozen, Problem> {
    let parent = app.models.get(&watched.model)?;
    if described(&parent) != *watched {
        let detail = format!(
            "model `{}` is another network than the one that detector `{detector}` watches: make a detector of it",
            parent.name
        );
        return Err(Problem::conflict("network_changed", detail));
    }
    let failed = |reason: &str| Problem::conflict("model_failed", format!("model `{}` {reason}", parent.name));
    // Let go of with this function: a trainer may wait for readers.
    let published = parent.published();
    let any: Arc<dyn Any + Send + Sync> = published.snapshot.clone();
    let snapshot: Arc<NetworkSnapshot> = any.downcast().map_err(|_| failed("stands still and shows no version"))?;
    let weights = freeze(&snapshot).map_err(|error| failed(&error.to_string()))?;
    Ok(Frozen { model_id: parent.id, version: published.version, weights })
}

/// What a detector is to adopt when it is made, or is put again and has adopted nothing.
pub(super) fn first(app: &App, detector: &str, watched: &Watched) -> Result<Option<Frozen>, Problem> {
    let adopts = find(app, detector)
        .map_or(true, |live| known(live.published().snapshot.clone()).is_some_and(|snapshot| snapshot.watching.is_none()));
    if adopts { frozen(app, detector, watched).map(Some) } else { Ok(None) }
}

/// Looks through the newest version of the network from here on; answered when it holds.
pub(in crate::http) async fn adopt(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let live = find(&app, &name)?;
    let watched = of(&live).ok_or_else(|| {
        let detail = format!("detector `{name}` watches a frozen encoder, which has one version");
        Problem::unprocessable("invalid_change", detail)
    })?;
    let frozen = app.blocking(move |app| frozen(app, &name, &watched)).await?;
    look_through(&app, &live, frozen).await?;
    Ok(Json(view(&live)))
}

/// Has a detector adopt a version, unless it looks through it already.
pub(super) async fn look_through(app: &Arc<App>, live: &Arc<Live>, frozen: Frozen) -> Result<(), Problem> {
    let Frozen { model_id, version, weights } = frozen;
    let adopted = known(live.published().snapshot.clone()).and_then(|snapshot| snapshot.watching.clone());
    if adopted.is_some_and(|watching| watching.adopted.model_id == model_id && watching.adopted.version == version) {
        // To begin anew with it would forget what is no longer kept.
        return Ok(());
    }
    let keeping = live.clone();
    let weights = app.blocking(move |app| Ok(app.models.keep_blob(&keeping, &weights)?)).await?;
    live.set(json!(Setting::Adopt(Adoption { model_id, version, weights }))).await?;
    Ok(())
}
