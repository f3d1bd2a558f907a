package rpm

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of the scanner: the longest tag with its attributes, the longest text that is
// taken, and how deep elements nest (primary.xml has 5 levels).
const (
	maxTag   = 64 << 10
	maxText  = 4 << 10
	maxDepth = 16
)

// scanner reads the XML of repository metadata some ten times as fast as encoding/xml: it
// skips the texts that nobody asks for and copies nothing else. It takes well-formed UTF-8
// documents; document types, but for one that declares nothing where doctype is set, and
// entities other than XML's own five and character references are refused.
type scanner struct {
	r    *bufio.Reader
	read int64    // bytes so far
	open [][]byte // names of the open elements
	big  []byte   // a tag or text that does not fit the reader's buffer

	doctype bool // a document type may name the document's kind, but declare nothing
}

// tag is the start or end of an element. Its bytes are valid until the next call of the
// scanner.
type tag struct {
	name  []byte
	attrs []byte // name="value" pairs, not yet looked at
	end   bool
	empty bool // start and end in one
	depth int  // 1 for the root
}

func newScanner(r io.Reader) *scanner { return &scanner{r: bufio.NewReaderSize(r, 64<<10)} }

func (x *scanner) depth() int { return len(x.open) }

func cut(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return badMeta("it cannot be read").Wrap(err)
}

// skip drops everything up to and with c, and tells whether it held only white space.
func (x *scanner) skip(c byte) (blank bool, err error) {
	blank = true
	for {
		b, err := x.r.ReadSlice(c)
		x.read += int64(len(b))
		if err == nil {
			b = b[:len(b)-1]
		}
		blank = blank && len(bytes.TrimLeft(b, " \t\r\n")) == 0
		if !errors.Is(err, bufio.ErrBufferFull) {
			return blank, err
		}
	}
}

// until returns everything up to and without the next c, at most limit bytes.
func (x *scanner) until(c byte, limit int) ([]byte, error) {
	b, err := x.r.ReadSlice(c)
	x.read += int64(len(b))
	if err == nil {
		return b[:len(b)-1], nil
	}
	x.big = append(x.big[:0], b...)
	for errors.Is(err, bufio.ErrBufferFull) && len(x.big) <= limit {
		b, err = x.r.ReadSlice(c)
		x.read += int64(len(b))
		x.big = append(x.big, b...)
	}
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			return nil, badMeta("a tag or text of over %d bytes", limit)
		}
		return nil, cut(err)
	}
	return x.big[:len(x.big)-1], nil
}

// element goes to the next start or end of an element, whatever text is before it.
func (x *scanner) element() (tag, error) {
	for {
		blank, err := x.skip('<')
		if err != nil {
			return tag{}, cut(err)
		}
		if !blank && len(x.open) == 0 {
			return tag{}, badMeta("text outside the document")
		}
		t, ok, err := x.tag()
		if err != nil || ok {
			return t, err
		}
	}
}

// tag reads what follows a "<"; ok is false for comments and the like.
func (x *scanner) tag() (t tag, ok bool, err error) {
	first, err := x.r.Peek(1)
	if err != nil {
		return t, false, cut(err)
	}
	switch first[0] {
	case '!':
		return t, false, x.bang()
	case '?':
		return t, false, x.through("?>")
	}
	b, err := x.inside()
	if err != nil {
		return t, false, err
	}
	if b[0] == '/' {
		name := bytes.TrimRight(b[1:], " \t\r\n")
		n := len(x.open)
		if n == 0 || !bytes.Equal(x.open[n-1], name) {
			return t, false, badMeta("the end of %.40q, which is not open", name)
		}
		x.open = x.open[:n-1]
		return tag{name: name, end: true, depth: n}, true, nil
	}
	if b[len(b)-1] == '/' {
		t.empty, b = true, b[:len(b)-1]
	}
	i := bytes.IndexAny(b, " \t\r\n")
	if i < 0 {
		i = len(b)
	}
	t.name, t.attrs, t.depth = b[:i], b[i:], len(x.open)+1
	if !validName(t.name) {
		return t, false, badMeta("an element named %.40q", t.name)
	}
	if !t.empty {
		if len(x.open) == maxDepth {
			return t, false, badMeta("elements nested over %d deep", maxDepth)
		}
		n := len(x.open)
		if n < cap(x.open) {
			x.open = x.open[:n+1]
		} else {
			x.open = append(x.open, nil)
		}
		x.open[n] = append(x.open[n][:0], t.name...)
	}
	return t, true, nil
}

// inside reads up to the ">" that ends a tag: not one in an attribute's value. Every byte is
// looked at once, however many of those there are.
func (x *scanner) inside() ([]byte, error) {
	x.big = x.big[:0]
	var quote byte
	for {
		b, err := x.r.ReadSlice('>')
		x.read += int64(len(b))
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, cut(err)
		}
		quote = openQuote(quote, b)
		done := err == nil && quote == 0
		if !done || len(x.big) > 0 {
			x.big = append(x.big, b...)
			b = x.big
		}
		switch {
		case len(b) > maxTag:
			return nil, badMeta("a tag of over %d bytes", maxTag)
		case done && len(b) == 1:
			return nil, badMeta("an empty tag")
		case done:
			return b[:len(b)-1], nil
		}
	}
}

// openQuote is the quotation mark that is open behind b, where that of quote was before it;
// 0 is none.
func openQuote(quote byte, b []byte) byte {
	for {
		if quote == 0 {
			i := bytes.IndexAny(b, `"'`)
			if i < 0 {
				return 0
			}
			quote, b = b[i], b[i+1:]
		}
		n := bytes.IndexByte(b, quote)
		if n < 0 {
			return quote
		}
		quote, b = 0, b[n+1:]
	}
}

// bang skips a comment, a CDATA section, or a document type without declarations where one
// is allowed.
func (x *scanner) bang() error {
	b, err := x.r.Peek(8)
	switch {
	case bytes.HasPrefix(b, []byte("!--")):
		return x.comment()
	case bytes.HasPrefix(b, []byte("![CDATA[")) && len(x.open) > 0:
		return x.through("]]>")
	case string(b) == "!DOCTYPE" && x.doctype && len(x.open) == 0:
		b, err := x.inside()
		if err == nil && bytes.IndexByte(b, '[') >= 0 {
			err = badMeta("entities of its own")
		}
		return err
	case err != nil && !errors.Is(err, io.EOF):
		return cut(err)
	}
	return badMeta("it has a document type or entities of its own")
}

func (x *scanner) comment() error {
	n, err := x.r.Discard(len("!--"))
	x.read += int64(n)
	if err != nil {
		return cut(err)
	}
	return x.through("-->")
}

// through skips everything up to and with the mark, of two or three bytes, which ends in
// ">".
func (x *scanner) through(mark string) error {
	var end [5]byte // the last two bytes before b and up to three of b
	for {
		b, err := x.r.ReadSlice('>')
		x.read += int64(len(b))
		n := copy(end[2:], b[max(0, len(b)-3):])
		if err == nil && bytes.HasSuffix(end[:2+n], []byte(mark)) {
			return nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return cut(err)
		}
		copy(end[:2], end[n:])
	}
}

// children gives the elements directly in t to fn, which may take their texts, and ends
// behind t.
func (x *scanner) children(t tag, fn func(tag) error) error {
	if t.empty {
		return nil
	}
	depth := t.depth
	for {
		e, err := x.element()
		switch {
		case err != nil:
			return err
		case e.end && e.depth == depth:
			return nil
		case e.end || e.depth != depth+1:
			continue
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

// text is the text of the element that t starts. Elements in it are refused.
func (x *scanner) text(t tag) (string, error) { return x.textOf(t, maxText) }

// textOf is text of at most limit bytes.
func (x *scanner) textOf(t tag, limit int) (string, error) {
	if t.empty {
		return "", nil
	}
	depth := t.depth
	var out strings.Builder
	for {
		b, err := x.until('<', limit)
		if err != nil {
			return "", err
		}
		if err := unescape(&out, b); err != nil {
			return "", err
		}
		if out.Len() > limit {
			return "", badMeta("a text of over %d bytes", limit)
		}
		if m, _ := x.r.Peek(8); string(m) == "![CDATA[" {
			return "", badMeta("a CDATA section in a name")
		}
		t, ok, err := x.tag()
		if err != nil {
			return "", err
		}
		if !ok {
			continue
		}
		if !t.end || t.depth != depth {
			return "", badMeta("an element in a text")
		}
		return out.String(), nil
	}
}

// word is text without white space around it.
func (x *scanner) word(t tag) (string, error) {
	s, err := x.text(t)
	return strings.TrimSpace(s), err
}

// tail checks that nothing follows the document.
func (x *scanner) tail() error {
	for {
		blank, err := x.skip('<')
		if !blank {
			return badMeta("text outside the document")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return cut(err)
		}
		if _, ok, err := x.tag(); err != nil {
			return err
		} else if ok {
			return badMeta("a second document")
		}
	}
}

// attr is the value of an attribute, or "". All attributes must be well formed.
func (t tag) attr(name string) (string, error) {
	b := t.attrs
	value, found := "", false
	for {
		rest := bytes.TrimLeft(b, " \t\r\n")
		if len(rest) == 0 {
			return value, nil
		}
		if len(rest) == len(b) {
			return "", badMeta("attributes of %.40q that run together", t.name)
		}
		eq := bytes.IndexByte(rest, '=')
		if eq < 0 {
			return "", badMeta("an attribute of %.40q without a value", t.name)
		}
		key, v := bytes.TrimRight(rest[:eq], " \t\r\n"), bytes.TrimLeft(rest[eq+1:], " \t\r\n")
		if !validName(key) || len(v) == 0 || v[0] != '"' && v[0] != '\'' {
			return "", badMeta("an attribute of %.40q that is not quoted", t.name)
		}
		n := bytes.IndexByte(v[1:], v[0])
		if n < 0 {
			return "", badMeta("an attribute of %.40q that does not end", t.name)
		}
		if string(key) == name {
			if found {
				return "", badMeta("the attribute %q comes twice", name)
			}
			found = true
			var out strings.Builder
			if err := unescape(&out, v[1:n+1]); err != nil {
				return "", err
			}
			value = out.String()
		}
		b = v[n+2:]
	}
}

func validName(b []byte) bool {
	for i, c := range b {
		if !isAlpha(c) && c != '_' && c < 0x80 && (i == 0 || !isDigit(c) && c != ':' && c != '-' && c != '.') {
			return false
		}
	}
	return len(b) > 0 && utf8.Valid(b)
}

// unescape appends b with its references resolved.
func unescape(out *strings.Builder, b []byte) error {
	if !utf8.Valid(b) {
		return badMeta("bytes that are no UTF-8")
	}
	out.Grow(len(b))
	for {
		i := bytes.IndexAny(b, "&<")
		if i < 0 {
			i = len(b)
		}
		for _, c := range b[:i] {
			if c < ' ' && c != '\n' && c != '\t' && c != '\r' {
				return badMeta("a control character")
			}
		}
		out.Write(b[:i])
		if i == len(b) {
			return nil
		}
		n := bytes.IndexByte(b[i:], ';')
		if b[i] == '<' || n < 0 {
			return badMeta("a %q in a text", b[i])
		}
		ref := string(b[i+1 : i+n])
		b = b[i+n+1:]
		r, ok := reference(ref)
		if !ok {
			return badMeta("the entity %.40q", ref)
		}
		out.WriteRune(r)
	}
}

// maxRef bounds a reference: "#x10ffff;", with some zeros before the number.
const maxRef = 32

// reference is the character that stands for "&ref;".
func reference(ref string) (rune, bool) {
	switch ref {
	case "amp":
		return '&', true
	case "lt":
		return '<', true
	case "gt":
		return '>', true
	case "quot":
		return '"', true
	case "apos":
		return '\'', true
	}
	num, ok := strings.CutPrefix(ref, "#")
	base := 10
	if strings.HasPrefix(num, "x") {
		num, base = num[1:], 16
	}
	r, err := strconv.ParseUint(num, base, 21)
	return rune(r), ok && err == nil && xmlChar(rune(r))
}

// xmlChar tells whether XML 1.0 may hold the character.
func xmlChar(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || r >= ' ' && r <= 0xd7ff || r >= 0xe000 && r <= 0xfffd || r >= 0x10000 && r <= 0x10ffff
}
