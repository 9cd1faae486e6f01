// What etcd's own monitoring mixin computes: its alerts as Prometheus loads them, and the expression of each panel's line.
// The folder of the mixin comes with -J: it is read where Go keeps the module of etcd, not kept here.
local alerts = (import 'config.libsonnet') + (import 'alerts/alerts.libsonnet');
local targets = (import 'dashboards/targets.libsonnet')({ datasource: { name: 'prometheus' } }, alerts._config);
{
  // Without the time for which an alert has to be true before it is raised: a test has no ten minutes.
  groups: [
    group { rules: [rule { 'for': '0s' } for rule in group.rules] }
    for group in alerts.prometheusAlerts.groups
  ],
  panels: { [name]: targets[name].expr for name in std.objectFields(targets) },
}
