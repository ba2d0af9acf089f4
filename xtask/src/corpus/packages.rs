//! Package descriptions out of what `apt-cache dumpavail` prints.

use super::Text;

/// One text per package: its one-line description and, where the lists have it, the long one.
pub fn descriptions(dump: &str) -> Vec<Text> {
    packages(dump).map(|package| package.whole()).collect()
}

/// One text per package: its one-line description.
pub fn titles(dump: &str) -> Vec<Text> {
    packages(dump)
        .map(|package| Text {
            id: package.name.to_owned(),
            text: package.title.to_owned(),
        })
        .collect()
}

struct Package<'a> {
    name: &'a str,
    title: &'a str,
    /// Lines of the long description, without their indentation.
    body: Vec<&'a str>,
}

impl Package<'_> {
    fn whole(&self) -> Text {
        let mut text = self.title.to_owned();
        // A lone dot stands for an empty line.
        for line in self
            .body
            .iter()
            .map(|line| line.trim())
            .filter(|line| *line != ".")
        {
            text.push(' ');
            text.push_str(line);
        }
        Text {
            id: self.name.to_owned(),
            text,
        }
    }
}

fn packages(dump: &str) -> impl Iterator<Item = Package<'_>> {
    dump.split("\n\n").filter_map(|stanza| {
        let mut name = None;
        let mut title = None;
        let mut body = Vec::new();
        let mut in_description = false;
        for line in stanza.lines() {
            if line.starts_with(' ') {
                if in_description {
                    body.push(line);
                }
                continue;
            }
            let Some((field, value)) = line.split_once(": ") else {
                continue;
            };
            in_description = field == "Description" || field == "Description-en";
            if field == "Package" {
                name = Some(value);
            } else if in_description {
                title = Some(value);
            }
        }
        Some(Package {
            name: name?,
            title: title?,
            body,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "Package: 0ad\nDepends: libc6\nDescription: Strategy game\n\
        Description-md5: d94\nTag: game::strategy,\n uitoolkit::sdl\n\n\
        Package: jq\nDescription-en: JSON processor\n A tool like sed\n .\n for JSON.\nSize: 1\n";

    #[test]
    fn a_description_is_title_and_body_without_other_fields() {
        let found = descriptions(DUMP);
        assert_eq!(found[0].text, "Strategy game");
        assert_eq!(found[1].text, "JSON processor A tool like sed for JSON.");
    }

    #[test]
    fn a_title_is_one_line() {
        let found: Vec<String> = titles(DUMP).into_iter().map(|text| text.text).collect();
        assert_eq!(found, ["Strategy game", "JSON processor"]);
    }
}
