//! What fails for ever, although nobody says that it is refused for good: a step that everything after it waits for, and objects
//! that nobody takes. A person is told, and what can go on goes on.

use serde_json::{Value, json};

use super::runs::{Operator, block_on, settled, shared};
use super::stage::{Shared, lock};
use super::told::{pass_for, warnings};

fn plan(stage: &Shared) -> Value {
    lock(stage).resource["status"]["plan"].clone()
}

/// X8 is refused by a policy: nothing after it may be begun, so the status has its words, the way out and one event, from when
/// it has failed for long until it is let through.
#[test]
fn a_volume_that_nobody_lets_be_deleted_is_told_until_it_is() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).kept_claims = true;
        lock(&stage).world.wipe_disk(1);
        for _ in 0..20 {
            operator.pass().await.expect("a pass");
            if lock(&stage).planned().starts_with("DropVolume") {
                break;
            }
            lock(&stage).world.tick();
        }
        assert_eq!(lock(&stage).planned(), "DropVolume null", "it may pass");
        let since = plan(&stage)["since"].clone();
        pass_for(&operator, &stage, 100).await;
        let told = plan(&stage);
        assert_eq!(
            (&told["step"], &told["blockedBy"]["reason"]),
            (&json!("DropVolume"), &json!("StepFails")),
            "{told}"
        );
        let message = told["blockedBy"]["message"].as_str().unwrap_or_default();
        assert!(message.starts_with("DropVolume fails: ") && message.contains("denied the request"), "{told}");
        assert!(told["humanMay"][0].to_string().contains("a policy"), "{told}");
        assert_eq!(told["since"], since, "it is the same step");
        assert_eq!(lock(&stage).condition("Progressing"), ("True".to_owned(), "StepFails".to_owned()));
        assert_eq!(warnings(&stage, "StepFails"), 1, "{:?}", lock(&stage).events);

        lock(&stage).kept_claims = false;
        operator.pass().await.expect("a pass");
        assert_eq!(lock(&stage).planned(), "DropVolume null", "it is done");
        assert_eq!(plan(&stage)["humanMay"], json!(null));
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(lock(&stage).world.raft.members.keys().copied().collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(warnings(&stage, "StepFails"), 1, "{:?}", lock(&stage).events);
    });
}

/// U5: a webhook that lets nobody evict a pod that serves is no disruption budget, and is told as whoever refuses to let a pod
/// go is.
#[test]
fn a_serving_pod_that_nobody_lets_be_evicted_is_told_until_it_is() {
    block_on(async {
        let stage = shared(settled(3, &json!({})).await);
        let operator = Operator::new(&stage);
        lock(&stage).world.unending.insert(2);
        lock(&stage).edit(&json!({"image": "balsa.dev/balsa:b"}));
        pass_for(&operator, &stage, 5).await;
        assert_eq!(lock(&stage).planned(), "RestartPod null", "it may pass");
        pass_for(&operator, &stage, 60).await;
        let told = plan(&stage);
        assert_eq!(
            (&told["step"], &told["blockedBy"]["reason"]),
            (&json!("RestartPod"), &json!("RestartFails")),
            "{told}"
        );
        assert!(told["blockedBy"]["message"].to_string().contains("denied the request"), "{told}");
        assert!(told["humanMay"][0].to_string().contains("pod db-2"), "{told}");
        let warned = (warnings(&stage, "RestartFails"), warnings(&stage, "StepFails"));
        assert_eq!(warned, (1, 0), "{:?}", lock(&stage).events);
        lock(&stage).world.unending.clear();
        operator.pass().await.expect("a pass");
        assert_eq!(lock(&stage).planned(), "RestartPod null", "it is done");
        operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
    });
}

/// Turns of the loop for so many seconds, whether or not their passes end well.
async fn turn_for(operator: &Operator, stage: &Shared, seconds: i64) {
    let end = lock(stage).world.now + seconds;
    while lock(stage).world.now < end {
        _ = operator.turn().await;
        lock(stage).world.tick();
    }
}

/// G2: what a webhook that does not answer keeps from being written for long is as good as refused: the cluster is kept alive as
/// it is, and the status tells of it, in words that do not change with every failure.
#[test]
fn g2_a_lost_member_is_replaced_although_a_webhook_does_not_answer() {
    for (plural, kind) in [("statefulsets", "StatefulSet"), ("configmaps", "ConfigMap")] {
        block_on(async {
            let stage = shared(settled(3, &json!({})).await);
            let operator = Operator::new(&stage);
            lock(&stage).unanswered = Some(plural);
            let image = lock(&stage).world.set.clone().expect("a set").image;
            let config = json!({"logLevel": "debug"});
            lock(&stage).edit(&json!({"replicas": 5, "image": "balsa.dev/balsa:b", "config": config}));
            lock(&stage).world.wipe_disk(1);
            assert!(operator.pass().await.is_err(), "it may pass");
            turn_for(&operator, &stage, 150).await;
            {
                let stage = lock(&stage);
                let members: Vec<u64> = stage.world.raft.members.keys().copied().collect();
                assert_eq!(members, [1, 3, 4], "{}", stage.planned());
                assert_eq!(stage.resource["status"]["readyReplicas"], 3);
                let words = format!("the API server does not take {kind} db");
                assert!(stage.planned().contains(&words), "{}", stage.planned());
                assert!(stage.planned().contains("failed calling webhook"), "{}", stage.planned());
                assert_eq!(stage.condition("Updated"), ("False".to_owned(), "InvalidSpec".to_owned()));
                assert_eq!(stage.world.set.clone().expect("a set").image, image);
            }
            let told = |stage: &Shared| lock(stage).writes.iter().filter(|write| write.ends_with(" status")).count();
            let before = told(&stage);
            turn_for(&operator, &stage, 50).await;
            let written = told(&stage) - before;
            assert!(written <= 1, "{written} times in ten passes: each brings the next one at once");
            lock(&stage).unanswered = None;
            operator.settle().await.unwrap_or_else(|wrong| panic!("{wrong}"));
            assert_eq!(lock(&stage).world.raft.members.len(), 5);
            assert_eq!(lock(&stage).condition("Updated"), ("True".to_owned(), "UpToDate".to_owned()));
        });
    }
}
