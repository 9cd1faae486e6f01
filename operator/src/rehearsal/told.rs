//! What a person is told, as real passes write it: conditions, plan and events of a cluster that has a trouble.

use serde_json::json;

use super::runs::{Operator, block_on, settled, shared};
use super::stage::{Shared, lock};
use crate::plan::LEARNER_DEADLINE_SECONDS;

/// Passes for so many seconds.
async fn pass_for(operator: &Operator, stage: &Shared, seconds: i64) {
    let end = lock(stage).world.now + seconds;
    while lock(stage).world.now < end {
        operator.pass().await.expect("a pass");
        lock(stage).world.tick();
    }
    operator.pass().await.expect("a pass");
}

/// A slow learner may take longer than the deadline; one to which nothing moves for so long is stuck, from then on.
#[test]
fn a_learner_is_stuck_by_its_last_progress_not_by_its_age() {
    block_on(async {
        let stage = shared(settled(1, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).edit(&json!({"replicas": 2}));
        while lock(&stage).world.volumes.get(&1).is_none_or(|volume| volume.disk.is_none()) {
            operator.pass().await.expect("a pass");
            lock(&stage).world.tick();
        }
        lock(&stage).world.volumes.get_mut(&1).expect("volume 1").behind = 10_000;
        pass_for(&operator, &stage, 2 * LEARNER_DEADLINE_SECONDS).await;
        assert!(lock(&stage).planned().contains("LearnerBehind"), "it moves: {}", lock(&stage).planned());

        lock(&stage).world.raft.stalled = true;
        pass_for(&operator, &stage, LEARNER_DEADLINE_SECONDS / 2).await;
        assert!(lock(&stage).planned().contains("LearnerBehind"), "not yet: {}", lock(&stage).planned());
        pass_for(&operator, &stage, LEARNER_DEADLINE_SECONDS / 2 + 10).await;
        assert!(lock(&stage).planned().contains("LearnerStuck"), "{}", lock(&stage).planned());
        assert_eq!(lock(&stage).condition("Degraded"), ("True".to_owned(), "LearnerStuck".to_owned()));

        lock(&stage).world.raft.stalled = false;
        pass_for(&operator, &stage, 10).await;
        assert!(lock(&stage).planned().contains("LearnerBehind"), "it moves again: {}", lock(&stage).planned());
        lock(&stage).world.volumes.get_mut(&1).expect("volume 1").behind = 1;
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        let warned = lock(&stage).events.iter().filter(|event| event[1] == "LearnerStuck").count();
        assert_eq!(warned, 1, "{:?}", lock(&stage).events);
    });
}
