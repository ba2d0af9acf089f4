//! What reading manifests gives, and how it refuses.

use millrace_crds::manifest::{
    FILE_BYTES_MAX, Kind, Manifest, documents_of_str, read_path, read_str,
};

const JOB: &str = "
apiVersion: millrace.dev/v1alpha1
kind: BatchJob
metadata:
  name: reviews
spec:
  serviceRef:
    name: sentiment
  input:
    uris: [reviews.jsonl]
  output:
    uri: out
";

const SERVICE: &str = "
apiVersion: millrace.dev/v1alpha1
kind: InferenceService
metadata: {name: sentiment}
spec:
  models:
  - name: minilm
    task: Embedding
    source: {uri: hf://acme/minilm}
";

fn refused(text: &str, expected: &str) {
    let error = read_str("job.yaml", text).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}\ninstead of\n{expected}");
}

#[test]
fn one_file_may_hold_several_documents() {
    let text = format!("---{SERVICE}---\n# nothing here\n---{JOB}---\n");
    let manifests = read_str("job.yaml", &text).unwrap();
    let kinds: Vec<Kind> = manifests.iter().map(|manifest| manifest.kind()).collect();
    assert_eq!(kinds, [Kind::InferenceService, Kind::BatchJob]);
    assert_eq!(manifests[1].name(), "reviews");
}

#[test]
fn json_is_read_as_well() {
    let text = r#"{"apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
        "metadata": {"name": "reviews"},
        "spec": {"serviceRef": {"name": "a"}, "input": {"uris": ["a\u002ejsonl"]},
                 "output": {"uri": "out"}}}"#;
    let manifests = read_str("job.json", text).unwrap();
    let millrace_crds::manifest::Manifest::BatchJob(job) = &manifests[0] else {
        panic!("{manifests:?}");
    };
    assert_eq!(job.spec.input.uris, Some(vec!["a.jsonl".to_owned()]));
    assert_eq!(job.spec.retry.max_attempts, 3);
}

#[test]
fn a_problem_names_file_document_object_and_field() {
    let text = format!("{SERVICE}---{}", JOB.replace("uris", "urls"));
    let error = read_str("job.yaml", &text).unwrap_err();
    let lines: Vec<String> = error.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        lines[1],
        "job.yaml, document 2 (BatchJob reviews): spec.input: give either uris, the files to read, or \
         inline, the rows themselves"
    );
    assert_eq!(
        lines[0],
        "job.yaml, document 2 (BatchJob reviews): spec.input.urls: unknown field; did you mean \
         uris?"
    );
    assert_eq!(lines.len(), 2);
}

#[test]
fn problems_of_all_documents_are_reported() {
    let text = format!(
        "{}---{}",
        SERVICE.replace("Embedding", "Embed"),
        JOB.replace("uri: out", "uri: ''")
    );
    let error = read_str("job.yaml", &text).unwrap_err();
    let documents: Vec<_> = error
        .problems()
        .iter()
        .map(|problem| problem.document)
        .collect();
    assert_eq!(documents, [Some(1), Some(2)], "{error}");
}

#[test]
fn an_unknown_kind_is_named_with_the_known_ones() {
    refused(
        &JOB.replace("BatchJob", "Job"),
        "kind: \"Job\" is no kind of millrace; known are BatchJob, InferenceService",
    );
    refused(
        &JOB.replace("v1alpha1", "v1"),
        "apiVersion: \"millrace.dev/v1\" is not known to this build; write millrace.dev/v1alpha1",
    );
    refused("a: 1", "document 1: kind: is missing");
    refused("- a", "document 1: is not an object");
}

#[test]
fn what_is_of_another_api_is_passed_over_and_what_is_misspelt_is_not() {
    let secret =
        "apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\nstringData: {key: hunter2}\n";
    let documents = documents_of_str("job.yaml", &format!("{secret}---{JOB}")).unwrap();
    assert_eq!(documents.ours.len(), 1);
    assert_eq!(
        documents.foreign,
        ["job.yaml, document 1 (Secret keys): v1"]
    );
    for misspelt in [
        JOB.replace("BatchJob", "BatchJobs"),
        JOB.replace("millrace.dev/v1alpha1", "milrace.dev/v1alpha1"),
        JOB.replace("kind: BatchJob", ""),
    ] {
        assert!(
            documents_of_str("job.yaml", &misspelt).is_err(),
            "{misspelt}"
        );
    }
    refused(secret, "holds no document of millrace");
}

#[test]
fn a_name_may_be_taken_once() {
    let text = format!("{JOB}---{JOB}");
    refused(
        &text,
        "job.yaml, document 2 (BatchJob reviews): metadata.name: this name is already taken by \
         job.yaml, document 1; rename or remove one",
    );
    let elsewhere = JOB.replace("name: reviews", "name: reviews\n  namespace: other");
    assert_eq!(
        read_str("job.yaml", &format!("{JOB}---{elsewhere}"))
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn broken_yaml_is_refused_with_its_line_and_without_its_text() {
    let error = read_str("job.yaml", "kind: BatchJob\nspec: [hunter2: {\n").unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("job.yaml: is neither YAML nor JSON at line"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn a_key_given_twice_is_refused() {
    refused(
        &JOB.replace("  input:", "  input: {}\n  input:"),
        "neither YAML nor JSON at line",
    );
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let earlier = format!("*a{}", level - 1);
        let entries = vec![earlier; 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{entries}]\n"));
    }
    refused(&text, "neither YAML nor JSON");
}

#[test]
fn nesting_is_bounded() {
    refused(&"[".repeat(100_000), "neither YAML nor JSON");
}

#[test]
fn an_empty_file_is_refused() {
    for text in ["", "# nothing\n", "---\n---\n"] {
        refused(
            text,
            "job.yaml: holds no document of millrace; write a BatchJob, InferenceService",
        );
    }
}

#[test]
fn a_folder_is_read_in_the_order_of_names() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("b.yml"), JOB).unwrap();
    std::fs::write(folder.path().join("a.yaml"), SERVICE).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "not a manifest").unwrap();
    std::fs::create_dir(folder.path().join("data.json")).unwrap();
    let manifests = read_path(folder.path()).unwrap();
    let names: Vec<&str> = manifests.iter().map(|manifest| manifest.name()).collect();
    assert_eq!(names, ["sentiment", "reviews"]);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.yaml");
    let message = |path: &std::path::Path| read_path(path).unwrap_err().to_string();
    assert!(message(&path).contains("job.yaml: cannot be read: No such file"));
    std::fs::write(&path, vec![b'#'; FILE_BYTES_MAX + 1]).unwrap();
    assert!(message(&path).contains("is longer than 1048576 bytes"));
    std::fs::write(&path, b"a: \xff").unwrap();
    assert!(message(&path).contains("is not UTF-8"));
    std::fs::remove_file(&path).unwrap();
    assert!(message(folder.path()).contains("holds no document"));
}

#[test]
fn a_document_keeps_what_was_written_without_the_defaults() {
    let documents = documents_of_str("text", JOB).unwrap();
    let [document] = &documents.ours[..] else {
        panic!("{documents:?}");
    };
    assert_eq!(document.place, "text, document 1 (BatchJob reviews)");
    assert_eq!(document.written["spec"].get("suspend"), None);
    assert!(matches!(&document.manifest, Manifest::BatchJob(job) if !job.spec.suspend));
}
