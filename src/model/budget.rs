//! The memory budget of the process: what all models may hold together, and each one's share of it.
//!
//! What was asked for (a total, and weights) is a setting of the log. Shares follow from it and from what each model needs and may
//! have ([`super::share`]), so they are not stored; a plan that a model follows because of its share is a decision of that model.
//! Models that get less come first and are waited for, so all plans together never hold more than the total.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::ModelError;
use super::live::{ChangeError, Limits, Live};
use super::registry::{Models, RegistryError};
use super::share::{Claim, shares};
use crate::fold::BelowMinimum;
use crate::limits::SHARE_WEIGHT_MAX;
use crate::memory::Amount;
use crate::stream::log::{Entry, Log};

/// The log's name of the setting.
const SETTING: &str = "memory-budget";
/// How long a model may take to follow its share: somebody waits for it, and no other model can be made or deleted meanwhile.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same of one that is in the middle of a change, which may take longer than anybody waits.
const PATIENCE_MIDWAY: Duration = Duration::from_millis(250);

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shared {
    /// What all models may hold; none: all that the ceiling leaves.
    budget: Option<Amount>,
    /// Weights by model id; 1 where there is none.
    weights: BTreeMap<u32, f64>,
}

/// Models that need more together than they may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the models need at least {minimum_bytes} bytes together, and may hold {budget_bytes} bytes")]
pub struct Overcommitted {
    /// What they may hold.
    pub budget_bytes: u64,
    /// The sum of what each needs.
    pub minimum_bytes: u64,
}

/// The memory of the process as its models share it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessMemory {
    /// What the whole process may hold.
    pub ceiling_bytes: u64,
    /// What of it is no model's.
    pub reserved_bytes: u64,
    /// The budget as it was asked for; none: all that the ceiling leaves.
    pub budget: Option<Amount>,
    /// The same in bytes.
    pub budget_bytes: Option<u64>,
    /// What models share in any case.
    pub shared_bytes: u64,
    /// The sum of what each needs.
    pub minimum_bytes: u64,
    /// The sum of what their plans hold at most.
    pub planned_bytes: u64,
    /// By name.
    pub models: BTreeMap<String, ModelMemory>,
}

/// One model's part of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelMemory {
    /// How much it gets beside the others.
    pub weight: f64,
    /// Its own budget; none: unconstrained.
    pub budget_bytes: Option<u64>,
    /// Its share.
    pub allotted_bytes: Option<u64>,
    /// What it needs.
    pub minimum_bytes: u64,
    /// What its plan holds at most.
    pub planned_bytes: u64,
    /// What it holds now.
    pub used_bytes: u64,
}

impl Shared {
    /// What the log has; nothing was asked for where it has nothing.
    pub(super) fn read(log: &dyn Log) -> Result<Shared, RegistryError> {
        let Some(bytes) = log.setting(SETTING)? else { return Ok(Shared::default()) };
        let unreadable =
            |error| ModelError::Inconsistent(format!("the setting `{SETTING}` cannot be read from the log: {error}"));
        Ok(serde_json::from_slice(&bytes).map_err(unreadable)?)
    }

    /// The same as an entry of the log.
    pub(super) fn entry(&self) -> Result<Entry, ModelError> {
        let bytes = serde_json::to_vec(self).map_err(|error| ModelError::Inconsistent(error.to_string()))?;
        Ok(Entry::PutSetting { key: SETTING.to_owned(), bytes })
    }

    /// The same without a model that goes.
    pub(super) fn without(mut self, model: u32) -> Shared {
        self.weights.remove(&model);
        self
    }

    fn weight(&self, model: u32) -> f64 {
        self.weights.get(&model).copied().unwrap_or(1.0)
    }

    /// What models share where the ceiling leaves `most_bytes`. The ceiling may have come down since.
    fn total_bytes(&self, most_bytes: u64) -> u64 {
        self.budget.map_or(most_bytes, |budget| budget.of(most_bytes).min(most_bytes))
    }
}

/// What each model that is there gets.
pub(super) type Shares = Vec<(Arc<Live>, u64)>;

impl Models {
    /// The memory of the process and of each model at this moment.
    pub fn memory(&self) -> ProcessMemory {
        let shared = self.shared.lock().clone();
        let room = self.ground.settings.room;
        let of = |live: &Arc<Live>| {
            let used_bytes = live.ledger().total();
            let status = live.status_lent();
            ModelMemory {
                weight: shared.weight(live.id),
                budget_bytes: status.budget_bytes,
                allotted_bytes: status.allotted_bytes,
                minimum_bytes: status.minimum_bytes,
                planned_bytes: status.planned_bytes,
                used_bytes,
            }
        };
        let models: BTreeMap<String, ModelMemory> = self.list().iter().map(|live| (live.name.clone(), of(live))).collect();
        let shared_bytes = shared.total_bytes(room.models_bytes());
        ProcessMemory {
            ceiling_bytes: room.ceiling_bytes,
            reserved_bytes: room.reserved_bytes,
            budget: shared.budget,
            budget_bytes: shared.budget.map(|_| shared_bytes),
            shared_bytes,
            minimum_bytes: models.values().map(|model| model.minimum_bytes).sum(),
            planned_bytes: models.values().map(|model| model.planned_bytes).sum(),
            models,
        }
    }

    /// What the whole process may hold, in bytes.
    pub fn ceiling_bytes(&self) -> u64 {
        self.ground.settings.room.ceiling_bytes
    }

    /// What all models together may hold, in bytes.
    pub fn shared_bytes(&self) -> u64 {
        self.shared.lock().total_bytes(self.ground.settings.room.models_bytes())
    }

    /// Changes what models may hold together (none: all that the ceiling leaves), and the weights of those that are named.
    ///
    /// # Errors
    /// It is less than the models need or more than the ceiling leaves, a weight is none, or its model is not there: nothing is
    /// changed. Or a model could not follow: the setting holds, and the others' shares are mended by the next change or start.
    pub fn set_process_budget(&self, budget: Option<Amount>, weights: &BTreeMap<String, f64>) -> Result<(), RegistryError> {
        let _changing = self.changing.lock();
        let most_bytes = self.ground.settings.room.models_bytes();
        let mut wanted = self.shared.lock().clone();
        wanted.budget = budget;
        for (name, &weight) in weights {
            let unknown = |_| RegistryError::Weight(format!("weights: there is no model `{name}`"));
            let live = self.get(name).map_err(unknown)?;
            if !(1.0 / SHARE_WEIGHT_MAX..=SHARE_WEIGHT_MAX).contains(&weight) {
                let (least, most) = (1.0 / SHARE_WEIGHT_MAX, SHARE_WEIGHT_MAX);
                return Err(RegistryError::Weight(format!("weights: `{name}` has {weight}, allowed are {least} to {most}")));
            }
            wanted.weights.insert(live.id, weight);
        }
        if let Some(Amount::Bytes(budget_bytes)) = budget
            && budget_bytes > most_bytes
        {
            return Err(RegistryError::AboveCeiling { budget_bytes, most_bytes });
        }
        let (shares, _) = self.divide(&wanted, None)?;
        self.ground.committer.commit(vec![wanted.entry()?])?;
        *self.shared.lock() = wanted;
        Ok(self.follow(&shares, None)?)
    }

    /// Changes a model's own budget in bytes (none: unconstrained) by a decision, and with it what is left for the others.
    ///
    /// # Errors
    /// There is no such model, no plan fits, or a model could not follow.
    pub fn set_budget(&self, name: &str, budget_bytes: Option<u64>) -> Result<Arc<Live>, RegistryError> {
        let _changing = self.changing.lock();
        let live = self.get(name)?;
        let (failure, minimum_bytes) = {
            let status = live.status_lent();
            (status.failure.clone(), status.minimum_bytes)
        };
        if let Some(failure) = failure {
            return Err(ChangeError::Failed(failure).into());
        }
        let most = self.ground.within(budget_bytes);
        if most < minimum_bytes {
            return Err(ChangeError::from(BelowMinimum { budget_bytes: most, minimum_bytes }).into());
        }
        let before = std::mem::replace(&mut *live.budget_bytes.lock(), budget_bytes);
        let shared = self.shared.lock().clone();
        let divided = self.divide(&shared, None).map_err(RegistryError::from);
        let followed = divided.and_then(|(shares, _)| Ok(self.follow(&shares, Some(&live))?));
        if followed.is_err() && live.status_lent().budget_bytes != budget_bytes {
            *live.budget_bytes.lock() = before;
        }
        followed.map(|()| live)
    }

    /// Shares anew once every model is where it was before the start: the ceiling may have been changed in between.
    pub async fn share_after_start(self: Arc<Self>) {
        for live in self.list() {
            live.replayed().await;
        }
        let shared = tokio::task::spawn_blocking(move || {
            let _changing = self.changing.lock();
            self.share_again();
        });
        // A panic in it has been said already.
        drop(shared.await);
    }

    /// Gives every model its share of what there is now. What stands in the way is said, and mended by the next change.
    pub(super) fn share_again(&self) {
        let shared = self.shared.lock().clone();
        match self.divide(&shared, None) {
            Err(error) => tracing::error!(%error, "the models keep their plans, though these are more than the process may hold"),
            Ok((shares, _)) => {
                if let Err(error) = self.follow(&shares, None) {
                    tracing::warn!(%error, "not every model follows its share of the memory yet");
                }
            }
        }
    }

    /// Each model's share, and that of one more that is to come.
    pub(super) fn divide(&self, shared: &Shared, coming: Option<Claim>) -> Result<(Shares, u64), Overcommitted> {
        let models = self.list();
        let claims: Vec<Claim> = models.iter().map(|live| self.claim(live, shared)).chain(coming).collect();
        let budget_bytes = shared.total_bytes(self.ground.settings.room.models_bytes());
        let divided = shares(budget_bytes, &claims).ok_or_else(|| Overcommitted {
            budget_bytes,
            minimum_bytes: claims.iter().fold(0, |sum, claim| claim.floor.saturating_add(sum)),
        })?;
        let last = divided.last().copied().unwrap_or_default();
        Ok((models.into_iter().zip(divided).collect(), last))
    }

    /// What a model needs and may have. One that stands still has what it has.
    fn claim(&self, live: &Live, shared: &Shared) -> Claim {
        let cap = self.ground.within(*live.budget_bytes.lock());
        let weight = shared.weight(live.id);
        let status = live.status_lent();
        match &status.failure {
            Some(_) => Claim { weight, floor: status.planned_bytes, cap: status.planned_bytes },
            None => Claim { weight, floor: status.minimum_bytes, cap },
        }
    }

    /// Has each model follow its share, those first that may hold less than before; `asked` is the one whose own budget is changed.
    pub(super) fn follow(&self, shares: &Shares, asked: Option<&Arc<Live>>) -> Result<(), ChangeError> {
        let gets_less = |(live, share): &&(Arc<Live>, u64)| {
            let status = live.status_lent();
            status.allotted_bytes.is_none_or(|before| before > *share) || status.planned_bytes > *share
        };
        let (first, then): (Vec<_>, Vec<_>) = shares.iter().partition(gets_less);
        for (live, allotted_bytes) in first.into_iter().chain(then) {
            let anew = asked.is_some_and(|asked| Arc::ptr_eq(asked, live));
            let limits = Limits { budget_bytes: *live.budget_bytes.lock(), allotted_bytes: *allotted_bytes, anew };
            let same = {
                let status = live.status_lent();
                let holds = status.allotted_bytes == Some(*allotted_bytes) && status.planned_bytes <= *allotted_bytes;
                status.failure.is_some() || (holds && !anew)
            };
            if !same {
                let midway = live.status_lent().under_way.is_some();
                let patience = if midway { PATIENCE_MIDWAY } else { PATIENCE };
                Handle::current().block_on(live.limit(limits, Instant::now() + patience))?;
            }
        }
        Ok(())
    }
}
