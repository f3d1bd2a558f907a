package event

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"drover/internal/cli"
	"drover/internal/fault"
)

// Verb is `drover events`.
type Verb struct {
	Follow  bool   `short:"f" help:"Go on with events as they come."`
	After   int64  `help:"Only events with a higher number."`
	Kind    string `help:"Only this kind, or with a trailing dot all kinds of a domain: build."`
	Subject string `help:"Only this subject: tag/stream-10."`
	Actor   string `help:"Only what this actor did."`
	Limit   int    `short:"n" default:"30" help:"How many."`
}

func line(w io.Writer, e Event) {
	fmt.Fprintf(w, "%6d  %s  %-16s %-16s %-28s %s\n", e.ID, e.At.Format(time.DateTime), e.Actor, e.Kind, e.Subject, e.Data)
}

// one prints an event of a stream: in JSON a line, in YAML a document.
func one(e *cli.Env, x Event) error {
	switch e.Format {
	case "json":
		return json.NewEncoder(e.Out).Encode(x)
	case "yaml":
		fmt.Fprintln(e.Out, "---")
	}
	return e.Show(x, func(w io.Writer) { line(w, x) })
}

// Run prints events, newest last.
func (v Verb) Run(e *cli.Env) error {
	q := url.Values{"limit": {strconv.Itoa(v.Limit)}, "kind": {v.Kind}, "subject": {v.Subject}, "actor": {v.Actor}}
	if v.After > 0 {
		q.Set("after", strconv.FormatInt(v.After, 10))
	} else {
		q.Set("newest", "true")
	}
	var es []Event
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/events?"+q.Encode(), nil, &es); err != nil {
		return err
	}
	if v.After == 0 {
		for i, j := 0, len(es)-1; i < j; i, j = i+1, j-1 {
			es[i], es[j] = es[j], es[i]
		}
	}
	if !v.Follow {
		return e.Show(es, func(w io.Writer) {
			for _, x := range es {
				line(w, x)
			}
		})
	}
	for _, x := range es {
		if err := one(e, x); err != nil {
			return err
		}
	}
	after := v.After
	if len(es) > 0 {
		after = es[len(es)-1].ID
	}
	// Whoever follows stops by an interrupt: that is a good end.
	resp, err := e.Client.Do(e.Ctx, "GET", "/api/v1/events/follow?"+url.Values{"after": {strconv.FormatInt(after, 10)}, "kind": {v.Kind}, "subject": {v.Subject}, "actor": {v.Actor}}.Encode(), nil, nil)
	if e.Ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var x Event
		if err := json.Unmarshal(sc.Bytes(), &x); err != nil {
			return err
		}
		if err := one(e, x); err != nil {
			return err
		}
	}
	if e.Ctx.Err() != nil {
		return nil
	}
	return sc.Err()
}

// AuditVerbs is `drover audit`.
type AuditVerbs struct {
	Verify auditVerify `cmd:"" help:"Check that no line of the ledger was changed, removed or put in." example:"drover audit verify\ndrover audit verify --head 4711:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
}

type auditVerify struct {
	Head string `help:"A head that was printed before, NUMBER:HASH; proves that nothing up to it was changed or cut off."`
}

// Run verifies the ledger on the server.
func (v auditVerify) Run(e *cli.Env) error {
	in := map[string]any{}
	if v.Head != "" {
		n, h, _ := strings.Cut(v.Head, ":")
		id, err := strconv.ParseInt(n, 10, 64)
		if err != nil || len(h) != 64 {
			return fault.Invalid("head", "%q is no head", v.Head).Fix("give NUMBER:HASH as `drover audit verify` printed it")
		}
		in["known"] = Head{id, h}
	}
	var out Head
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/audit/verify", in, &out); err != nil {
		return err
	}
	return e.Show(out, func(w io.Writer) { fmt.Fprintf(w, "clean: %d events, head %d:%s\n", out.ID, out.ID, out.Hash) })
}
