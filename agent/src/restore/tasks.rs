//! What a caller still has to do after a restore, in plain words (FLX-093 … FLX-098).
//!
//! A restored server is a new server: nothing outside its data directory came along.

use super::handover::Handover;
use super::parameters::Parameters;

/// The list, in the order in which somebody would work through it.
#[must_use]
pub fn after_restore(
    source: &str,
    restored: &str,
    differences: &Parameters,
    handover: &Handover,
    damaged_pages: usize,
) -> Vec<String> {
    let mut tasks = vec![
        // FLX-093
        format!(
            "Connection strings: clients of '{source}' still reach '{source}'. Point those that shall use the \
             restored data at '{restored}', whose host name and port are different."
        ),
        // FLX-095, FLX-090
        "Firewall rules, private endpoints and virtual network rules are not copied: the new server has none. \
         Create those that clients need."
            .to_owned(),
    ];
    // FLX-094
    tasks.push(if differences.is_empty() {
        "Server parameters are not applied to the new server; the source had none that differ.".to_owned()
    } else {
        let names: Vec<&str> = differences.keys().map(String::as_str).collect();
        format!(
            "Server parameters are not applied to the new server. Set those you need; they differ from the source: {}.",
            names.join(", ")
        )
    });
    // FLX-097
    tasks.push(
        "Logins and permissions are those of the restored state. Check that they are what you expect, \
         and that people who left since have no access."
            .to_owned(),
    );
    // FLX-098
    tasks.push(
        "Alert rules of the source do not watch the new server. Configure alerts for it."
            .to_owned(),
    );
    // FLX-096
    tasks.push("Scale the new server up or down as its use requires.".to_owned());

    if !handover.subscriptions.is_empty() {
        tasks.push(format!(
            "Logical replication subscriptions were disabled, because they would take the changes meant for the \
             source: {}. Before one is dropped or enabled here, detach it from the source's replication slot \
             (ALTER SUBSCRIPTION … SET (slot_name = NONE)).",
            handover.subscriptions.join(", ")
        ));
    }
    if !handover.prepared_transactions.is_empty() {
        tasks.push(format!(
            "Prepared transactions were open at the restored instant and hold their locks. Commit or roll back: {}.",
            handover.prepared_transactions.join(", ")
        ));
    }
    if damaged_pages > 0 {
        tasks.push(format!(
            "{damaged_pages} damaged pages were in the source when the backup was taken and are in the copy. \
             Restore an older backup beside it to compare the tables concerned."
        ));
    }
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    // FLX-093, FLX-094, FLX-095, FLX-096, FLX-097, FLX-098
    #[test]
    fn every_task_of_the_product_documents_is_named() {
        let differences = Parameters::from([("max_connections".into(), "200".into())]);
        let handover = Handover {
            subscriptions: vec!["app.sub1".into()],
            ..Handover::default()
        };
        let tasks = after_restore("pg1", "pg1-before-drop", &differences, &handover, 0);
        for word in [
            "Connection strings",
            "Firewall rules",
            "max_connections",
            "Logins",
            "Alert",
            "app.sub1",
            "Scale",
        ] {
            assert!(tasks.iter().any(|task| task.contains(word)), "{word}");
        }
        assert_eq!(
            after_restore("a", "b", &Parameters::new(), &Handover::default(), 0).len(),
            6
        );
    }
}
