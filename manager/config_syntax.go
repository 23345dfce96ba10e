package manager

import (
	"errors"
	"regexp"
	"strings"

	"github.com/BurntSushi/toml"
)

var definedTwice = regexp.MustCompile(`^Key '(.+)' (has already been defined|was already created)`)

// syntaxError is what the parser has to say of text, and what would do.
func syntaxError(text string, err error) *ConfigError {
	perr, ok := errors.AsType[toml.ParseError](err)
	if !ok {
		return &ConfigError{Line: 1, Want: "not TOML: " + err.Error()}
	}
	// Not its Line, which is the next one when the end of a line surprised it.
	e := &ConfigError{
		Line: lineAt(text, perr.Position.Start),
		Want: "not TOML: " + strings.TrimSuffix(perr.Message, "."),
	}
	if m := definedTwice.FindStringSubmatch(perr.Message); m != nil {
		e.Key, e.Want = m[1], "defined a second time: want it once"
		return e
	}
	// The parser's last key may be one that was well and is many lines above.
	line := strings.Split(text, "\n")[e.Line-1]
	name := perr.LastKey[strings.LastIndex(perr.LastKey, ".")+1:]
	if name != "" && strings.Contains(line, name) {
		e.Key = perr.LastKey
	}
	if would := remedy(perr.Message, line); would != "" {
		e.Want += ": want " + would
	}
	return e
}

// remedy is what would do where the parser says message of a line; "": who knows.
func remedy(message, line string) string {
	for _, s := range slips {
		if at := s.line.FindStringSubmatchIndex(line); at != nil && s.message.MatchString(message) {
			return string(s.line.ExpandString(nil, s.would, line, at))
		}
	}
	return ""
}

// What lines look like. What is repeated in a message is short.
const (
	lineKey   = `^\s*([\w.-]+)`
	lineGap   = `(?:\s*:=?\s*|\s+)` // where = should be
	lineBare  = `([^\s"'“”\[\]{}#,;=][^\s"'“”#,;]{0,60})` + lineEnd
	lineWhole = `("[^"]{0,60}"|'[^']{0,60}'|-?\d+|true|false|[\[{].{0,60}?)` + lineEnd
	lineEnd   = `\s*(?:#.*)?$`
)

// A slip is one of those that people make: what the parser's message has of it, what the
// line looks like, and what would do, with $1 for what the line has.
type slip struct {
	message, line *regexp.Regexp
	would         string
}

func slipOf(message, line, would string) slip {
	return slip{regexp.MustCompile(message), regexp.MustCompile(line), would}
}

// slips are tried in this order.
var slips = []slip{
	slipOf(`cannot contain newlines|expected ('"'|"'")$`, lineKey+`\s*=\s*(["'])([^"'#]{1,60})["']?\s*$`, `the closing quote: $1 = $2$3$2`),
	slipOf(`cannot contain newlines|EOF; expected ["']`, ``, `the closing quotes; only """ and ''' go over several lines`),
	slipOf(`^invalid escape|hexadecimal digits`, lineKey+`\s*=\s*"([^"']{1,60})"`+lineEnd, `single quotes around backslashes: $1 = '$2'`),
	slipOf(`^invalid escape|hexadecimal digits`, ``, `single quotes around a string with backslashes, or each of them twice`),

	slipOf(`expected '\.' or '='`, `^\s*(//|;|--)`, `# before a comment`),
	slipOf(`expected '\.' or '='`, lineKey+lineGap+lineWhole, `= behind the key: $1 = $2`),
	slipOf(`expected '\.' or '='`, lineKey+lineGap+lineBare, `= behind the key, and quotes around a string: $1 = "$2"`),
	slipOf(`expected '\.' or '='|key separator`, ``, `KEY = VALUE, or [TABLE], or # and a comment`),
	slipOf(`expected value( but found '\\[nr]' instead)?$`, ``, `a value behind =, or no such line`),
	slipOf(`end table name|end of table`, `^\s*\[+([\w.-]*[\w-])\s*\]?`+lineEnd, `[$1]`),
	slipOf(`end table name|end of table`, ``, `[supervisor] or [pool.NAME]`),

	slipOf(`^expected value`, lineKey+`\s*=\s*(?i:true|yes|on)`+lineEnd, `$1 = true`),
	slipOf(`^expected value`, lineKey+`\s*=\s*(?i:false|no|off)`+lineEnd, `$1 = false`),
	slipOf(`leading zeroes`, `^\s*(umask|\w+_mode)\s*=\s*`+lineBare, `quotes around a mode: $1 = "$2"`),
	slipOf(`leading zeroes`, lineKey+`\s*=\s*0+(\d+)`+lineEnd, `$1 = $2`),
	slipOf(`^expected value`, `[“”„‘’«»]`, `plain quotes, " or '`),
	slipOf(`^expected value|^(?i:invalid)|^expected a digit|end with a newline`, lineKey+`\s*=\s*`+lineBare, `quotes around a string: $1 = "$2"`),
	slipOf(`^expected value|^(?i:invalid)|^expected a digit`, ``, `quotes around a string`),
	slipOf(`end with a newline`, ``, `nothing behind it but # and a comment; a quote within "..." is \"`),
	slipOf(`array terminator|inline table`, ``, `a comma between two, and the closing bracket behind the last`),
}
