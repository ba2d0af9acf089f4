//! Results in a table of a real Postgres: each row once, whatever is lost on the way.

use std::process::Command;
use std::time::{Duration, Instant};

use millrace_e2e::files::{copy, repository};
use millrace_e2e::history::manifest;
use millrace_e2e::postgres_server::PostgresServer;
use millrace_e2e::process::{PATIENCE, Process, binary, until};
use tokio_postgres::Client;

use crate::scene::{Scene, SceneOptions, jsonl};

const ROWS: usize = 6_000;
const BAD_EVERY: usize = 97;
const BAD: usize = ROWS / BAD_EVERY;

/// A job over `input` whose results go into the table `texts`.
fn scene(postgres: &PostgresServer, input: Vec<u8>) -> Scene {
    Scene::new(SceneOptions {
        input,
        output_settings: "    join: [text, note]\n    postgres:\n      secretRef: {name: db}\n      table: texts\n",
        settings: "  sharding:\n    targetBytes: 65536\n".to_owned(),
        variables: vec![("MILLRACE_POSTGRES_URL", postgres.url())],
        ..SceneOptions::default()
    })
}

async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.unwrap().get(0)
}

/// Everything that the table holds, and where each version of each row lies: what is written over with
/// the same values shows, too.
async fn picture(client: &Client) -> Vec<String> {
    let rows = "select ctid::text || texts::text from texts order by row_key";
    let rows = client.query(rows, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn assert_every_row_once(client: &Client) {
    let rows = number(client, "select count(*) from texts").await;
    assert_eq!(rows as usize, ROWS);
    let good = "select count(*) from texts where error_code is null and error_message is null \
                and cardinality(embed) > 1 and input ->> 'text' like '% ' || split_part(id, '-', 2)";
    assert_eq!(number(client, good).await as usize, ROWS - BAD);
    let bad = "select count(*) from texts where error_code = 'invalid_json' and embed is null";
    assert_eq!(number(client, bad).await as usize, BAD);
    let ids = number(client, "select count(distinct id) from texts").await;
    assert_eq!(ids as usize, ROWS - BAD);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_in_the_table_once_and_loading_again_changes_nothing() {
    let postgres = PostgresServer::start();
    let scene = scene(&postgres, jsonl(ROWS, BAD_EVERY));
    scene.run().succeed();
    let client = postgres.connect().await;
    assert_every_row_once(&client).await;
    let loaded = manifest(&scene.output()).postgres;
    assert_eq!(loaded.as_deref(), Some("texts"));
    let key = format!("{}@0", scene.uri("rows.jsonl"));
    let first = "select id, run from texts where row_key = $1";
    let first = client.query_one(first, &[&key]).await.unwrap();
    assert_eq!((first.get(0), first.get(1)), ("row-0", 1));

    let before = picture(&client).await;
    // A finish whose manifest was lost, once with and once without what is noted of loaded files.
    for forgotten in ["select 1", "delete from millrace_loads"] {
        client.batch_execute(forgotten).await.unwrap();
        std::fs::remove_file(scene.output().join("manifest.json")).unwrap();
        scene.run().succeed();
        assert!(picture(&client).await == before, "the table changed");
    }
    // A table that is gone is made and loaded anew, also by a run that has nothing else to do.
    client.batch_execute("drop table texts").await.unwrap();
    scene.run().succeed();
    assert_every_row_once(&client).await;

    // Another output over the same rows takes their place.
    let job = std::fs::read_to_string(scene.path("job.yaml")).unwrap();
    let job = job.replace("uri: out\n", "uri: other\n");
    std::fs::write(scene.path("job.yaml"), job).unwrap();
    scene.run().succeed();
    assert_every_row_once(&client).await;
    let others = "select count(*) from texts where output like '%/other'";
    assert_eq!(number(&client, others).await as usize, ROWS);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_killed_while_rows_are_loaded_cost_no_row_and_double_none() {
    const KILLS: i64 = 6;
    let postgres = PostgresServer::start();
    let scene = scene(&postgres, jsonl(ROWS, BAD_EVERY));
    let client = postgres.connect().await;
    // Whoever makes the table makes it a slow one.
    let slowly = "create function slowly() returns trigger language plpgsql as \
                  $$ begin perform pg_sleep(0.2); return null; end $$; \
                  create function slow_down() returns event_trigger language plpgsql as \
                  $$ begin if to_regclass('texts') is not null \
                  and not exists (select from pg_trigger where tgname = 'slowly') then \
                  create trigger slowly after insert on texts execute function slowly(); \
                  end if; end $$; \
                  create event trigger slow_down on ddl_command_end \
                  when tag in ('CREATE TABLE') execute function slow_down()";
    client.batch_execute(slowly).await.unwrap();
    let mut run = scene.run();
    let mut killed = 0;
    while killed < KILLS && run.ended().is_none() {
        // Whoever inserts has its rows on the way.
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                    where application_name = 'millrace' and query like 'insert into%as held%' \
                    and state = 'active'";
        killed += number(&client, kill).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        killed >= KILLS,
        "it ended after {killed} kills:\n{}",
        run.log()
    );
    run.succeed();
    assert_every_row_once(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_small_files_share_transactions_of_some_hundred() {
    const CONNECTIONS: usize = 4;
    const ROWS_DUE: i64 = 500;
    let postgres = PostgresServer::start();
    let scene = Scene::new(SceneOptions {
        input: jsonl(ROWS, BAD_EVERY),
        output_settings: "    join: [text, note]\n    postgres:\n      secretRef: {name: db}\n      table: texts\n",
        // Some sixty rows each.
        settings: "  sharding:\n    targetBytes: 4096\n".to_owned(),
        variables: vec![("MILLRACE_POSTGRES_URL", postgres.url())],
        ..SceneOptions::default()
    });
    scene.run().succeed();
    let client = postgres.connect().await;
    assert_every_row_once(&client).await;
    let files = number(&client, "select count(*) from millrace_loads where whole").await;
    assert!(files > 100, "{files} files are not small");
    for table in ["texts", "millrace_loads"] {
        let transactions = format!("select xmin::text, count(*) from {table} group by 1");
        let transactions = client.query(&transactions, &[]).await.unwrap();
        assert!(transactions.len() <= ROWS / ROWS_DUE as usize + CONNECTIONS);
        let rows = transactions.iter().map(|row| row.get::<_, i64>(1));
        let small = rows.filter(|rows| *rows < ROWS_DUE).count();
        assert!(table != "texts" || small <= CONNECTIONS, "{transactions:?}");
    }
}

/// A trigger that fails the first inserts of the job with each of these codes.
fn failing(codes: &[(&str, u32)]) -> String {
    let cases = codes.iter().enumerate().map(|(index, (code, times))| {
        // A sequence is not rolled back with the transaction that it fails.
        format!(
            "if nextval('failures_{index}') <= {times} then \
             raise exception 'as a busy server' using errcode = '{code}'; end if; "
        )
    });
    let sequences = (0..codes.len()).map(|index| format!("create sequence failures_{index}; "));
    format!(
        "{}create function fails() returns trigger language plpgsql as \
         $$ begin {}return null; end $$; \
         create trigger fails after insert on texts execute function fails()",
        sequences.collect::<String>(),
        cases.collect::<String>(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_a_busy_server_gives_up_are_made_again() {
    let postgres = PostgresServer::start();
    let scene = scene(&postgres, jsonl(ROWS, BAD_EVERY));
    scene.run().succeed();
    let client = postgres.connect().await;
    // The table is loaded anew, under faults: serialization_failure, deadlock_detected, lock_not_available.
    let emptied = "delete from texts; delete from millrace_loads";
    client.batch_execute(emptied).await.unwrap();
    let codes = [("40001", 3), ("40P01", 2), ("55P03", 1)];
    client.batch_execute(&failing(&codes)).await.unwrap();
    std::fs::remove_file(scene.output().join("manifest.json")).unwrap();
    scene.run().succeed();
    assert_every_row_once(&client).await;
    for (index, (code, times)) in codes.iter().enumerate() {
        let seen = format!("select last_value from failures_{index}");
        assert!(number(&client, &seen).await > i64::from(*times), "{code}");
    }
    // Any other refusal is final.
    let (refused, emptied) = (
        failing(&[("23514", 1_000)]),
        format!("drop function fails cascade; {emptied}"),
    );
    client.batch_execute(&emptied).await.unwrap();
    client
        .batch_execute(&refused.replace("failures_0", "failures_3"))
        .await
        .unwrap();
    std::fs::remove_file(scene.output().join("manifest.json")).unwrap();
    let mut run = scene.run();
    assert!(!run.wait().success());
    assert!(run.log().contains("as a busy server"), "{}", run.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_will_not_do_is_refused_before_anything_is_computed() {
    let postgres = PostgresServer::start();
    let client = postgres.connect().await;
    let made = "create table texts (row_key text primary key, id integer)";
    client.batch_execute(made).await.unwrap();
    let scene = scene(&postgres, jsonl(10, 0));
    let mut run = scene.run();
    assert!(!run.wait().success());
    for word in ["spec.output.postgres.table", "\"id\"", "integer", "text"] {
        assert!(run.log().contains(word), "{word}:\n{}", run.log());
    }
    assert!(!scene.output().exists(), "something was done");
    // No password stands in what was said.
    assert!(!run.log().contains("millrace-test"), "{}", run.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_jsonb_refuses_sinks_no_row_beside_it() {
    let postgres = PostgresServer::start();
    let rows = [
        r#"{"id":"nul\u0000","text":"a","note":"b\u0000c"}"#,
        r#"{"id":"half","text":"a","note":["\ud83d","\ud83d\ude00"]}"#,
        r#"{"id":"huge","text":"a","note":1e999999}"#,
        r#"{"id":"plain","text":"a","note":{"n":1.5}}"#,
    ];
    let scene = scene(&postgres, rows.join("\n").into_bytes());
    scene.run().succeed();
    let client = postgres.connect().await;
    let notes = "select id, (input -> 'note')::text from texts order by id collate \"C\"";
    let notes = client.query(notes, &[]).await.unwrap();
    let notes: Vec<(&str, &str)> = notes.iter().map(|row| (row.get(0), row.get(1))).collect();
    let expected = [
        ("half", "[\"\u{fffd}\", \"😀\"]"),
        ("huge", "\"1e999999\""),
        ("nul\u{fffd}", "\"b\u{fffd}c\""),
        ("plain", "{\"n\": 1.5}"),
    ];
    assert_eq!(notes, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_at_first_is_waited_for() {
    let postgres = PostgresServer::start();
    let mut scene = scene(&postgres, jsonl(200, 0));
    let client = postgres.connect().await;
    // No connection but the test's own is let in for a while.
    let shut = "alter database postgres with connection limit 0";
    client.batch_execute(shut).await.unwrap();
    let role = "create role loader login password 'millrace-test'; \
                grant create on schema public to loader";
    client.batch_execute(role).await.unwrap();
    // The limit does not hold for superusers.
    let url = postgres.url().replace("millrace:", "loader:");
    scene.set_variable("MILLRACE_POSTGRES_URL", url);
    let mut run = scene.run();
    let asked = until(PATIENCE, || {
        postgres
            .log()
            .contains("too many connections")
            .then_some(())
    });
    asked.unwrap_or_else(|| panic!("nobody asked:\n{}", run.log()));
    let open = "alter database postgres with connection limit -1";
    client.batch_execute(open).await.unwrap();
    run.succeed();
    assert_eq!(number(&client, "select count(*) from texts").await, 200);

    // What is there needs no right to make it.
    let revoke = "revoke create on schema public from loader; delete from texts; \
                  delete from millrace_loads";
    client.batch_execute(revoke).await.unwrap();
    std::fs::remove_file(scene.output().join("manifest.json")).unwrap();
    scene.run().succeed();
    assert_eq!(number(&client, "select count(*) from texts").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_verified_by_the_authorities_that_are_trusted() {
    let postgres = PostgresServer::start_encrypted();
    let mut scene = scene(&postgres, jsonl(100, 0));
    let url = format!("{}?sslmode=verify-full", postgres.url());
    scene.set_variable("MILLRACE_POSTGRES_URL", url);
    let started = Instant::now();
    let mut run = scene.run();
    assert!(!run.wait().success());
    assert!(run.log().contains("certificate"), "{}", run.log());
    // It will not be trusted later either.
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "it was tried again"
    );
    let authority = postgres.authority().display().to_string();
    scene.set_variable("SSL_CERT_FILE", authority);
    scene.run().succeed();
    let client = postgres.connect().await;
    assert_eq!(number(&client, "select count(*) from texts").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_fills_a_column_for_each_step() {
    let postgres = PostgresServer::start();
    let example = repository().join("examples/sentiment-to-postgres");
    let folder = tempfile::tempdir().unwrap();
    for file in ["job.yaml", "service.yaml", "texts.jsonl"] {
        copy(&example.join(file), &folder.path().join(file));
    }
    let mut command = Command::new(binary("millrace"));
    command
        .env("MILLRACE_FAKE_BACKEND", "micros-per-token=1")
        .env("MILLRACE_POSTGRES_URL", postgres.url())
        .arg("run")
        .arg("-f")
        .arg(folder.path());
    Process::start(command, folder.path().join("run.log")).succeed();
    let client = postgres.connect().await;
    let whole = "select count(*) from texts where sentiment #>> '{0,label}' <> '' \
                 and emotion #>> '{0,label}' <> '' and cardinality(embedding) > 1";
    let texts = std::fs::read_to_string(example.join("texts.jsonl")).unwrap();
    let rows = texts.lines().count();
    assert_eq!(number(&client, whole).await as usize, rows);
}
