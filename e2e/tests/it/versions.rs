//! Versions of a function: listed, compared, split, tagged, rolled back.

use std::path::Path;

use anyhow::Result;
use e2e::{Options, Platform, cannot_run};

use crate::host;

fn write(dir: &Path, answer: &str) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("function.yml"), "metadata: { name: greet }\nspec: { runtime: python }\n")?;
    std::fs::write(dir.join("main.py"), format!("def handle(request):\n    return {answer:?}\n"))?;
    Ok(())
}

/// What so many requests are answered, sorted.
async fn answers(platform: &Platform, host: &str, count: usize) -> Result<String> {
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(platform.get(host, "/").await?.body);
    }
    found.sort();
    Ok(found.join(" "))
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_listed_compared_split_tagged_and_rolled_back() -> Result<()> {
    if cannot_run(&["python3"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    let dir = platform.scratch().join("greet");
    for answer in ["one", "two", "three"] {
        write(&dir, answer)?;
        platform.colibri(&["deploy", &dir.to_string_lossy()]).await?.ok()?;
    }
    let table = platform.colibri(&["versions", "greet"]).await?.ok()?;
    let names: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["greet-00003", "greet-00002", "greet-00001"], "{table}");
    assert!(table.lines().nth(1).is_some_and(|newest| newest.contains("100%") && newest.contains("code ")), "{table}");
    let diff = platform.colibri(&["diff", "greet"]).await?.ok()?;
    assert!(diff.contains("-    return \"two\"\n+    return \"three\"\n") && !diff.contains("one"), "{diff}");
    let diff = platform.colibri(&["diff", "greet", "1", "latest"]).await?.ok()?;
    assert!(diff.contains("-    return \"one\"\n+    return \"three\"\n"), "{diff}");
    assert!(diff.contains("--- greet-00001\n+++ greet-00003\n"), "{diff}");

    let split = platform.colibri(&["traffic", "greet", "1=50", "latest=50"]).await?.ok()?;
    assert!(split.contains("greet-00003 (latest)   50%"), "{split}");
    assert_eq!(answers(&platform, &host("greet"), 4).await?, "one one three three");
    platform.colibri(&["traffic", "greet", "latest=100", "--tag", "old=1"]).await?.ok()?;
    assert_eq!(answers(&platform, &host("old-greet"), 2).await?, "one one");
    assert_eq!(answers(&platform, &host("greet"), 2).await?, "three three");

    let back = platform.colibri(&["rollback", "greet"]).await?;
    assert!(back.text().contains("greet: greet-00002 serves, in place of greet-00003"), "{}", back.text());
    back.ok()?;
    assert_eq!(answers(&platform, &host("greet"), 2).await?, "two two");
    platform.colibri(&["rollback", "greet"]).await?.ok()?;
    assert_eq!(answers(&platform, &host("greet"), 2).await?, "one one");
    for (args, expected) in [
        (&["rollback", "greet"][..], "there is no ready version before greet-00001"),
        (&["rollback", "greet", "--to", "7"], "greet has no version 7"),
        (&["traffic", "greet", "1=90"], "1=90 makes 90 per cent, not 100"),
    ] {
        let refused = platform.colibri(args).await?;
        assert!(refused.code == 1 && refused.text().contains(expected), "{}", refused.text());
    }

    // What a command set stays where function.yml does not speak of it.
    platform.colibri(&["secret", "set", "s3", "WHO=me"]).await?.ok()?;
    let set = platform.colibri(&["env", "greet", "GREETING=hi", "--from-secret", "s3"]).await?.ok()?;
    assert!(set.contains("GREETING   hi") && set.contains("secret s3"), "{set}");
    let listed = platform.colibri(&["secret", "list"]).await?.ok()?;
    assert!(listed.contains("s3     WHO    greet"), "{listed}");
    let refused = platform.colibri(&["secret", "delete", "s3"]).await?;
    assert!(refused.code == 1 && refused.text().contains("secret s3 is used by greet"), "{}", refused.text());
    let code = "import os\n\n\ndef handle(request):\n    return os.environ['GREETING'] + os.environ['WHO']\n";
    std::fs::write(dir.join("main.py"), code)?;
    platform.colibri(&["deploy", &dir.to_string_lossy()]).await?.ok()?;
    assert_eq!(answers(&platform, &host("greet"), 2).await?, "hime hime");
    platform.colibri(&["env", "greet", "GREETING-", "--not-from-secret", "s3"]).await?.ok()?;
    platform.colibri(&["secret", "delete", "s3"]).await?.ok()?;

    // A new version serves at once, and what was tagged stays so.
    write(&dir, "four")?;
    platform.colibri(&["deploy", &dir.to_string_lossy()]).await?.ok()?;
    assert_eq!(answers(&platform, &host("greet"), 2).await?, "four four");
    assert_eq!(answers(&platform, &host("old-greet"), 1).await?, "one");
    platform.stop().await
}
