package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the linker (-ldflags "-X main.version=v1.2.3") for a release.
var version string

// versionText is the line that -version prints: the release, or else the version that Go derived from the repository,
// and the commit.
func versionText() string {
	v, commit := version, ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if v == "" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = ", commit " + s.Value
			}
		}
	}
	return fmt.Sprintf("vmm %s (%s%s)\n", v, runtime.Version(), commit)
}
