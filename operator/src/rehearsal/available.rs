//! `Available` as real passes write it while a cluster comes up, and afterwards.

use serde_json::json;

use super::runs::{Operator, block_on, settled, shared};
use super::stage::{Shared, Stage, lock};

/// How many members were ready when the condition was True first.
async fn ready_at_first(operator: &Operator, stage: &Shared) -> usize {
    for _ in 0..100 {
        operator.pass().await.expect("a pass");
        let ready = lock(stage).world.pods.values().filter(|pod| pod.object.ready).count();
        if lock(stage).condition("Available").0 == "True" {
            return ready;
        }
        lock(stage).world.tick();
    }
    panic!("not Available: {}", lock(stage).planned());
}

/// `kubectl wait --for=condition=Available` ends when a majority of what was asked for serves, as a Deployment's minimum is.
#[test]
fn a_cluster_is_available_first_with_a_majority_of_the_members_asked_for() {
    for (want, majority) in [(1, 1), (2, 2), (3, 2), (5, 3)] {
        block_on(async {
            let stage = shared(Stage::new(want, &json!({})));
            let operator = Operator::new(&stage);
            assert_eq!(ready_at_first(&operator, &stage).await, majority, "of {want}");
            // And stays so while it grows to its size, and beyond.
            for replicas in [want, 7] {
                lock(&stage).edit(&json!({"replicas": replicas}));
                while !lock(&stage).is_settled() {
                    operator.pass().await.expect("a pass");
                    assert_eq!(lock(&stage).condition("Available").0, "True", "{}", lock(&stage).planned());
                    lock(&stage).world.tick();
                }
            }
        });
    }
}

/// The Service leads to nobody before EndpointSlices tell of a ready member, whatever the members say.
#[test]
fn a_cluster_is_available_first_when_its_service_leads_to_a_member() {
    block_on(async {
        let mut stage = Stage::new(3, &json!({}));
        stage.endpoints_lag = true;
        let stage = shared(stage);
        let operator = Operator::new(&stage);
        for _ in 0..60 {
            operator.pass().await.expect("a pass");
            lock(&stage).world.tick();
        }
        assert!(lock(&stage).planned().starts_with("Settled"), "nothing else waits: {}", lock(&stage).planned());
        assert_eq!(lock(&stage).condition("Available"), ("False".to_owned(), "AwaitingEndpoints".to_owned()));
        lock(&stage).endpoints_lag = false;
        operator.pass().await.expect("a pass");
        assert_eq!(lock(&stage).condition("Available").0, "True");
        // Later neither their loss nor their refusal says anything.
        for refused in [None, Some(500), Some(403)] {
            (lock(&stage).endpoints_lag, lock(&stage).endpoints_refused) = (true, refused);
            operator.pass().await.expect("a pass");
            assert_eq!(lock(&stage).condition("Available").0, "True", "{refused:?}");
        }
    });
}

/// Without the right to read them nobody waits for them; what fails and passes is waited for.
#[test]
fn endpoint_slices_that_may_not_be_read_hold_nothing_up() {
    for (refused, comes) in [(403, true), (500, false), (429, false)] {
        block_on(async {
            let mut stage = settled(1, &json!({})).await;
            stage.resource["status"]["conditions"] = json!([]);
            stage.endpoints_refused = Some(refused);
            let stage = shared(stage);
            let passed = Operator::new(&stage).pass().await;
            assert_eq!(passed.is_ok(), comes, "{refused}: {:?}", passed.err());
            assert_eq!(lock(&stage).condition("Available").0 == "True", comes, "{refused}");
        });
    }
}
