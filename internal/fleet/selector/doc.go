// Package selector reads target expressions, Salt's and drover's own query language, into one tree,
// and puts sets of hosts together as the tree says.
//
// It is pure: what a leaf means is answered by whoever evaluates. No database, no host and no I/O
// must ever come in here.
//
//	node.go      the forms of targets, the tree, its bounds
//	parse.go     a text to a tree; faults that show the place
//	grammar.go   and, or, not and parentheses, which all languages share
//	salt.go      Salt's forms
//	query.go     the query language
//	text.go      a tree as text, in the query language
//	set.go       sets of hosts
//	eval.go      the tree on sets
//	match.go     whether a value is what a leaf asks for
//	path.go      Salt's way through nested facts
//	glob.go, pattern.go
//
// Source of Salt's forms: its documentation of targeting.
//
// # The query language
//
//	query   = and { "or" and }                      also ||
//	and     = not { "and" not }                     also &&
//	not     = "not" not | "(" query ")" | test      also !
//	test    = operand [ comparison ]
//	operand = name | online | agent
//	        | fact.a.b | fact("a:b") | label.role | label("role")
//	        | group("web") | pkg("openssl") | service("sshd") | port(22) | port("udp/53")
//	        | subnet("192.0.2.0/24") | salt("G@os:Cent*")
//	comparison = ("==" | "!=" | "<" | "<=" | ">" | ">=") value
//	           | ("=~" | "!~") regular expression | ("~" | ["not"] "like") glob
//	           | ["not"] "in" "(" value { "," value } ")"
//	value   = "text" | 'text' | word | number | true | false
//
// A backslash in a text stands before a quote or a backslash; before anything else it stands for
// itself, so that regular expressions need no doubling. true and false are what agents send for
// them: "True" and "False".
//
// An operand alone asks whether it is there: a package that is installed, a service that runs, a
// port that is listened on, a label or a fact that is set.
//
// Where a host has several values, as of a list or of packages that may be installed more than
// once, one that fits is enough. "!=", "!~", "not in" and "not like" are the opposites of their
// counterparts: a != b is not (a == b). They mean all other hosts, also those that have no value at
// all; to leave these out, ask for the value as well: fact.a and fact.a != "b".
//
// A number without quotes is compared as a number. Everything else is compared with < and > as RPM
// compares versions, so that "9.10" is behind "9.9". Packages are always compared as RPM does, by
// those of epoch, version and release that the query gives: pkg("openssl") < "3.2.2-16" holds for
// 1:3.2.2-14, and pkg("openssl") == "1:3.2.2" for each release of it.
//
// # Where Salt's targets differ from Salt's
//
// A mistake is a fault and not an empty set. Parentheses need no spaces around them. Regular
// expressions of facts ignore case by a flag: Salt makes the expression small, which turns \S into
// \s. Where mappings in a list have the same key, all are looked at, and not only the first.
package selector
