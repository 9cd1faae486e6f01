// Stands where the mixin imports Grafana's library of panels: of a panel's target only the expression is of interest here.
{
  query: {
    prometheus: {
      new(datasource, expr): { expr: expr },
      withLegendFormat(format): {},
    },
  },
}
