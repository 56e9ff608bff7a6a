// SPDX-License-Identifier: Apache-2.0
// What Grafana stores of a dashboard whose panels are of these four kinds, from the types that Grafana publishes.
import * as bar from '@grafana/schema/dist/types/raw/composable/bargauge/panelcfg/x/types.gen';
import * as heat from '@grafana/schema/dist/types/raw/composable/heatmap/panelcfg/x/types.gen';
import * as stat from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import * as series from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';
import * as raw from '@grafana/schema/dist/types/raw/dashboard/x/types.gen';

type Field<C> = Omit<raw.FieldConfigSource, 'defaults'> & {
  defaults: Omit<raw.FieldConfig, 'custom'> & { custom?: C };
};
type Panel<T extends string, O, C> = Omit<raw.Panel, 'type' | 'options' | 'fieldConfig'> & {
  type: T;
  options: O;
  fieldConfig: Field<C>;
};

export interface Parts {
  dashboard: raw.Dashboard;
  row: raw.RowPanel;
  timeseries: Panel<'timeseries', series.Options, series.FieldConfig>;
  stat: Panel<'stat', stat.Options, Record<string, never>>;
  bargauge: Panel<'bargauge', bar.Options, Record<string, never>>;
  heatmap: Panel<'heatmap', heat.Options, heat.FieldConfig>;
}
