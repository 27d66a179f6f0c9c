package e2e

import (
	"fmt"
	"os"
	"regexp"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"

	"vmm/test/lab"
)

// visits is a web application that counts its visits in a database.
const visits = `<?php
$db = pg_connect("host=" . getenv("DB") . " user=postgres connect_timeout=60");
pg_query($db, "create table if not exists visits (at timestamptz)");
pg_query($db, "insert into visits values (now())");
echo "visit ", pg_fetch_result(pg_query($db, "select count(*) from visits"), 0, 0), "\n";`

// TestContainerApps runs what people run in containers, out of Debian's packages: a web server under load, and a web application
// with its database in another machine, whose data survives that machine's sudden end.
func TestContainerApps(t *testing.T) {
	t.Parallel()
	if !long() {
		t.Skip("takes ten minutes on an emulated processor: run with " + longVariable + "=1")
	}
	path, err := lab.ContainerRootfs(t.Context(), root)
	require.NoError(t, err)
	layer, err := os.ReadFile(path)
	require.NoError(t, err)
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(layer, types.OCIUncompressedLayer))
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config.OS, config.Architecture = "linux", "amd64"
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	h, vmm := containerHost(t, map[string]v1.Image{"debian": img})
	const image = registryAddress + "/debian"
	h.output(t, "ip address add "+outside+"/32 dev lo")
	t.Cleanup(func() { h.cleanUp("ip address del " + outside + "/32 dev lo") })
	until := func(command string) { h.output(t, "until "+command+"; do sleep 0.5; done >/dev/null 2>&1") }
	h.output(t, vmm+" pull "+image)

	t.Run("nginx under load", func(t *testing.T) {
		h.output(t, vmm+" run -d --name web -p 127.0.0.1:8080:80 "+image+" nginx -g 'daemon off;'")
		until("wget -qO- http://127.0.0.1:8080/ | grep -q 'Welcome to nginx'")
		load := h.output(t, "wrk -t 1 -c 8 -d 20s --timeout 60s http://127.0.0.1:8080/ >/tmp/load & for i in 1 2 3; do "+vmm+" exec web nginx -t 2>/dev/null || exit 1; done; wait; cat /tmp/load")
		require.NotContains(t, load, "Socket errors", load)
		require.NotContains(t, load, "Non-2xx", load)
		requests := regexp.MustCompile(`(?m)^\s*([1-9]\d*) requests in`).FindString(load)
		require.NotEmpty(t, requests, load)
		t.Log(requests)
		require.Equal(t, "web\n0\n", h.output(t, vmm+" stop web; "+vmm+" wait web"), "nginx ends well when asked to")
		h.output(t, vmm+" rm web")
	})
	t.Run("application and database", func(t *testing.T) {
		h.output(t, fmt.Sprintf(`%s run -d --name db -p %s:5432:5432 -m 512M -u postgres -e PGDATA=/var/lib/postgresql/data %s sh -c '
			bin=$(ls -d /usr/lib/postgresql/*/bin)
			if [ ! -e $PGDATA/ready ]; then
				$bin/initdb -A trust >/dev/null && echo host all all all trust >>$PGDATA/pg_hba.conf && touch $PGDATA/ready && sync || exit 1
			fi
			exec $bin/postgres -h "*" -k /tmp'`, vmm, outside, image))
		ready := vmm + " exec -u postgres db psql -h /tmp -c 'select 1'"
		until(ready)
		h.output(t, fmt.Sprintf(`%s run -d --name app -p 127.0.0.1:8081:8080 -e DB=%s -e PAGE='%s' %s sh -c 'mkdir -p /srv/www && echo "$PAGE" >/srv/www/index.php && exec php -S 0.0.0.0:8080 -t /srv/www'`,
			vmm, outside, visits, image))
		page := "{ wget -qO- --content-on-error http://127.0.0.1:8081/ || { " + vmm + " logs app; " + vmm + " logs db; " + vmm + " exec db sh -c 'dmesg | tail -5; mount | grep vda'; exit 1; } >&2; }"
		until("wget -qO- http://127.0.0.1:8081/ | grep -q 'visit 1$'")
		require.Equal(t, "visit 2\nvisit 3\n", h.output(t, page+"; "+page))
		// The machine of the database is gone in the midst of it, and what was committed is not.
		h.output(t, "kill -9 $(pgrep -f '[m]onitor-container '$("+vmm+" ps | sed -n 's/^\\([0-9a-f]*\\) .* db$/\\1/p')); "+vmm+" wait db; "+vmm+" start db")
		until(ready)
		require.Equal(t, "visit 4\n", h.output(t, page))
		require.Equal(t, "app\ndb\n", h.output(t, vmm+" stop app db"))
	})
}
