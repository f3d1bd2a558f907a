package wire

import "net/url"

// State is where a channel points, as a site follows it.
type State struct {
	Channel  string `json:"channel"`
	Snapshot string `json:"snapshot"`
	Since    int64  `json:"since"`   // the event that moved it here
	Release  int64  `json:"release"` // the last event that changed which keys it has
	Trees    []Tree `json:"trees"`
}

// Tree is a repository of a channel.
type Tree struct {
	Name string `json:"name"`
	Key  string `json:"key,omitempty"` // name of the key that it is signed with
}

// PathFollow is the route of a channel's state; it takes snapshot, the one that is known, and
// wait, the seconds to wait for another.
func PathFollow(channel string) string {
	return "/api/v1/channels/" + url.PathEscape(channel) + "/follow"
}

// MaxFollow is the most seconds that one call waits.
const MaxFollow = 60
