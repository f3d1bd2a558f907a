package release

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"drover/internal/cli"
	"drover/internal/fault"
)

// TagVerbs is `drover tag`.
type TagVerbs struct {
	List   tagList   `cmd:"" help:"List tags." example:"drover tag list"`
	Show   tagShow   `cmd:"" help:"A tag with the latest build of each package." example:"drover tag show stream-10\ndrover tag show stream-10 --at 2026-11-24T03:00:00Z"`
	Set    tagSet    `cmd:"" help:"Make a tag, or change what is given." example:"drover tag set stream-10 --arch x86_64 --key stream-10 --mirror baseos --macro dist=.el10"`
	Build  tagBuild  `cmd:"" help:"Put a build into a tag." example:"drover tag build stream-10 hello-1.0-1.el10"`
	Remove tagRemove `cmd:"" help:"Take a build out of a tag." example:"drover tag remove stream-10 hello-1.0-1.el10"`
}

// TargetVerbs is `drover target`.
type TargetVerbs struct {
	List targetList `cmd:"" help:"List targets." example:"drover target list"`
	Set  targetSet  `cmd:"" help:"Make a target or change it." example:"drover target set stream-10 --build-tag stream-10-build --dest-tag stream-10"`
}

type tagList struct{}

// Run lists tags.
func (tagList) Run(e *cli.Env) error {
	var ts []Tag
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/tags", nil, &ts); err != nil {
		return err
	}
	return e.Show(ts, func(w io.Writer) {
		cli.Table(w, "TAG ARCHES KEY MIRRORS SINCE", func(row func(...any)) {
			for _, t := range ts {
				row(t.Name, strings.Join(t.Arches, ","), t.Key, strings.Join(t.Mirrors, ","), t.Since)
			}
		})
	})
}

type tagShow struct {
	Tag string `arg:"" help:"Name of the tag."`
	At  string `help:"As of an event number or a time."`
}

// Run shows a tag.
func (c tagShow) Run(e *cli.Env) error {
	var t Whole
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/tags/"+url.PathEscape(c.Tag)+"?at="+url.QueryEscape(c.At), nil, &t); err != nil {
		return err
	}
	return e.Show(t, func(w io.Writer) {
		fmt.Fprintf(w, "%s  arches %s  key %s  mirrors %s  since event %d\n", t.Name, strings.Join(t.Arches, ","), t.Key, strings.Join(t.Mirrors, ","), t.Since)
		if t.Locked {
			fmt.Fprintln(w, "locked: no build goes in or out")
		}
		fmt.Fprintln(w)
		cli.Table(w, "BUILD NVR BY COMMIT", func(row func(...any)) {
			for _, b := range t.Builds {
				row(b.ID, b.NVR, b.Owner, b.Commit[:min(12, len(b.Commit))])
			}
		})
	})
}

type tagSet struct {
	Tag     string            `arg:"" help:"Name of the tag."`
	Arch    []string          `help:"An arch that it is built for. Repeatable."`
	Key     *string           `help:"Signing key; an empty one leaves its repository unsigned."`
	Codec   *string           `help:"zst or gz."`
	Mirror  []string          `help:"A channel that its buildroot also installs from. Repeatable."`
	Install []string          `help:"A package in its buildroot. Repeatable."`
	Macro   map[string]string `help:"An rpm macro: dist=.el10. Repeatable."`
	Comps   string            `help:"A comps.xml file to publish with it." type:"existingfile"`
	Locked  *bool             `help:"Let no build in or out." negatable:""`

	SingleFrame  *bool `help:"Pack each metadata file as one frame, for readers that stop after the first." negatable:""`
	OpenChecksum *bool `help:"Tell the checksums of the unpacked metadata too; it makes each change slower." negatable:""`
}

// Run makes or changes a tag; what is not given stays.
func (c tagSet) Run(e *cli.Env) error {
	path := "/api/v1/tags/" + url.PathEscape(c.Tag)
	var had Whole
	if err := e.Client.Call(e.Ctx, "GET", path, nil, &had); err != nil && fault.Code(err) != "tag_unknown" {
		return err
	}
	t := had.Tag
	t.Name, t.Since = c.Tag, 0
	if c.Arch != nil {
		t.Arches = c.Arch
	}
	if c.Key != nil {
		t.Key = *c.Key
	}
	if c.Codec != nil {
		t.Codec = *c.Codec
	}
	if c.Mirror != nil {
		t.Mirrors = c.Mirror
	}
	if c.Install != nil {
		t.Install = c.Install
	}
	if c.Macro != nil {
		t.Macros = c.Macro
	}
	if c.Comps != "" {
		b, err := os.ReadFile(c.Comps)
		if err != nil {
			return fault.Invalid("file", "the comps file cannot be read").Wrap(err)
		}
		t.Comps = string(b)
	}
	if c.SingleFrame != nil {
		t.SingleFrame = *c.SingleFrame
	}
	if c.OpenChecksum != nil {
		t.OpenChecksum = *c.OpenChecksum
	}
	if c.Locked != nil {
		t.Locked = *c.Locked
	}
	if t.Arches == nil {
		t.Arches = []string{}
	}
	return e.Client.Call(e.Ctx, "PUT", path, t, nil)
}

type tagBuild struct {
	Tag   string `arg:"" help:"Name of the tag."`
	Build string `arg:"" help:"Number or NVR."`
}

// Run tags a build.
func (c tagBuild) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/tags/"+url.PathEscape(c.Tag)+"/builds/"+url.PathEscape(c.Build), nil, nil)
}

type tagRemove struct {
	Tag   string `arg:"" help:"Name of the tag."`
	Build string `arg:"" help:"Number or NVR."`
}

// Run untags a build.
func (c tagRemove) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "DELETE", "/api/v1/tags/"+url.PathEscape(c.Tag)+"/builds/"+url.PathEscape(c.Build), nil, nil)
}

type targetList struct{}

// Run lists targets.
func (targetList) Run(e *cli.Env) error {
	var ts []Target
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/targets", nil, &ts); err != nil {
		return err
	}
	return e.Show(ts, func(w io.Writer) {
		cli.Table(w, "TARGET BUILDTAG DESTTAG SINCE", func(row func(...any)) {
			for _, t := range ts {
				row(t.Name, t.BuildTag, t.DestTag, t.Since)
			}
		})
	})
}

type targetSet struct {
	Target   string `arg:"" help:"Name of the target."`
	BuildTag string `required:"" help:"Tag whose buildroot is used."`
	DestTag  string `help:"Tag where builds land; the build tag when not given."`
}

// Run makes or changes a target.
func (c targetSet) Run(e *cli.Env) error {
	if c.DestTag == "" {
		c.DestTag = c.BuildTag
	}
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/targets/"+url.PathEscape(c.Target), map[string]string{"build_tag": c.BuildTag, "dest_tag": c.DestTag}, nil)
}
