package wire

import (
	"bytes"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/rpmpack"
)

// ReleasePackage makes the package that leads a host to a channel: its .repo file and the keys,
// by name, of what is signed. The same content gives the same bytes; with other keys of the channel
// its release grows, so that a host that has it takes the new one.
func ReleasePackage(base string, st State, keys map[string]string) ([]byte, error) {
	channel, parts := st.Channel, Parts(st.Channel, st.Trees)
	name := strings.ReplaceAll(channel, "/", "-")
	made := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // whenever it is made, it is the same
	p, err := rpmpack.NewRPM(rpmpack.RPMMetaData{Name: "drover-release-" + name, Version: "1", Release: strconv.FormatInt(st.Release, 10), Arch: "noarch", OS: "linux",
		Summary: "The repositories of the channel " + channel, Description: "The .repo file of the channel " + channel + " at " + base + ", and its keys.",
		Licence: "Public Domain", //nolint:misspell // its name there
		Group:   "System Environment/Base", Vendor: "drover", BuildHost: "drover", Compressor: "gzip", Epoch: rpmpack.NoEpoch, BuildTime: made})
	if err != nil {
		return nil, err
	}
	add := func(name string, body []byte, typ rpmpack.FileType) {
		p.AddFile(rpmpack.RPMFile{Name: name, Body: body, Mode: 0o100644, Owner: "root", Group: "root", MTime: uint32(made.Unix()), Type: typ})
	}
	file := func(key string) string {
		return "/etc/pki/rpm-gpg/RPM-GPG-KEY-drover-" + strings.ReplaceAll(key, "/", "-")
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		add(file(k), []byte(keys[k]), rpmpack.GenericFile)
	}
	add("/etc/yum.repos.d/drover-"+name+".repo", RepoFile(base, channel, Keyed(parts, func(key string) string { return "file://" + file(key) })), rpmpack.ConfigFile|rpmpack.NoReplaceFile)
	var b bytes.Buffer
	err = p.Write(&b)
	return b.Bytes(), err
}
